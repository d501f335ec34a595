"""Self-attention on a CPU without upstream's cast of query, key and value to float16."""

from __future__ import annotations

from typing import Any

from mindformers.parallel_core.training_graph.base_models.gpt import gpt_layer_specs
from mindformers.parallel_core.training_graph.transformer.attention import SelfAttention, SelfAttentionContiguous
from mindspore import Tensor


class _KeepsPrecision:
    """Sends attention through upstream's branch that does not cast.

    That branch is meant for plain attention and repeats the key-value heads itself (on the wrong axes in this layout);
    the CPU attention kernel groups the heads, so there is nothing to repeat.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.use_flash_attention = False

    def _repeat_kv(self, heads: Tensor, _num_repeats: int) -> Tensor:
        return heads


class PreciseSelfAttention(_KeepsPrecision, SelfAttention):
    """SelfAttention in compute_dtype."""


class PreciseSelfAttentionContiguous(_KeepsPrecision, SelfAttentionContiguous):
    """SelfAttentionContiguous in compute_dtype."""


def install(*, keep_float16_cast: bool) -> None:
    """Choose the self-attention of networks that are built from now on."""
    gpt_layer_specs.SelfAttention = SelfAttention if keep_float16_cast else PreciseSelfAttention
    gpt_layer_specs.SelfAttentionContiguous = (
        SelfAttentionContiguous if keep_float16_cast else PreciseSelfAttentionContiguous
    )
