"""CPU self-attention that omits MindFormers' cast of query, key and value to float16."""

from __future__ import annotations

from typing import Any

from mindformers.parallel_core.training_graph.base_models.gpt import gpt_layer_specs
from mindformers.parallel_core.training_graph.transformer.attention import SelfAttention, SelfAttentionContiguous
from mindspore import Tensor


class _NoFloat16Cast:
    """Selects the MindFormers attention branch that does not cast.

    This branch is meant for plain attention and repeats the key-value heads (on the wrong axes in this layout). The
    CPU attention kernel handles grouped heads, so this class disables the repetition.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.use_flash_attention = False

    def _repeat_kv(self, heads: Tensor, _num_repeats: int) -> Tensor:
        return heads


class PreciseSelfAttention(_NoFloat16Cast, SelfAttention):
    """SelfAttention in compute_dtype."""


class PreciseSelfAttentionContiguous(_NoFloat16Cast, SelfAttentionContiguous):
    """SelfAttentionContiguous in compute_dtype."""


def install(*, keep_float16_cast: bool) -> None:
    """Select the self-attention class for networks built after this call."""
    gpt_layer_specs.SelfAttention = SelfAttention if keep_float16_cast else PreciseSelfAttention
    gpt_layer_specs.SelfAttentionContiguous = (
        SelfAttentionContiguous if keep_float16_cast else PreciseSelfAttentionContiguous
    )
