"""CPU versions of the Ascend-only operators in MindFormers' mcore models, with the same signatures.

Each is composed of MindSpore operators that have forward and backward CPU kernels in graph mode.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from ascend_cpt.errors import ConfigError

# Added to masked scores. It is finite, so that a fully masked row (a padding token) becomes the mean over all
# values instead of NaN.
MASKED_SCORE = -1e9


class Outer(nn.Cell):
    """Outer product: (n,) and (m,) → (n, m). Replaces `mindspore.ops.auto_generate.Outer`."""

    def construct(self, left: Tensor, right: Tensor) -> Tensor:
        return ops.mul(ops.reshape(left, (-1, 1)), ops.reshape(right, (1, -1)))

    def shard(self, *_strategies: Any) -> Outer:
        """Ignore the sharding strategy: operators are not sharded on a CPU."""
        return self


class FlashAttentionScore(nn.Cell):
    """Scaled dot-product attention in float32. Replaces `mindspore.ops.operations.nn_ops.FlashAttentionScore`.

    Inputs (layout BNSD; heads N are a multiple of the key-value heads):
        query (B, N, S, D); key and value (B, N_kv, S_kv, D); attn_mask (B, 1, S, S_kv), (B, N, S, S_kv) or (S, S_kv)
        with 1 where a query must not attend to a key, or None.
    Outputs:
        Four, as for the operator: the row maximum of the scores (B, N, S, 1), two unused outputs (None), and the
        attention output (B, N, S, D) in the query's dtype.

    Raises:
        ConfigError: for unsupported features (other layouts, dropout, compressed or sliding masks).
    """

    def __init__(
        self,
        head_num: int,
        keep_prob: float = 1.0,
        scale_value: float = 1.0,
        pre_tokens: int = 2147483647,
        next_tokens: int = 2147483647,
        inner_precise: int = 0,
        input_layout: str = "BNSD",
        sparse_mode: int = 0,
    ) -> None:
        super().__init__()
        if input_layout != "BNSD":
            raise ConfigError(f"attention on a CPU supports only input_layout BNSD, not {input_layout}")
        if keep_prob != 1.0:
            raise ConfigError(f"attention on a CPU supports only attention_dropout 0, not {1 - keep_prob:g}")
        if sparse_mode != 0:
            raise ConfigError(
                f"attention on a CPU supports only sparse_mode 0, not {sparse_mode}: set use_attn_mask_compression and "
                "use_eod_attn_mask_compression to False, and remove window_size"
            )
        self.num_heads = head_num
        self.scale = scale_value
        self.scores_of = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(axis=-1)

    def construct(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        real_shift: Tensor | None = None,
        drop_mask: Tensor | None = None,
        padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> tuple[Tensor, None, None, Tensor]:
        batch, num_heads, length, head_dim = query.shape
        num_kv_heads, kv_length = key.shape[1], key.shape[2]
        # Queries in a group share a key, so one product per key-value head suffices, without repeating keys and values.
        grouped = (batch, num_kv_heads, num_heads // num_kv_heads * length, head_dim)
        whole = (batch, num_heads, length, kv_length)
        grouped_query = ops.reshape(ops.cast(query, ms.float32) * self.scale, grouped)
        scores = ops.reshape(self.scores_of(grouped_query, ops.cast(key, ms.float32)), whole)
        if attn_mask is not None:
            scores = scores + ops.cast(attn_mask, ms.float32) * MASKED_SCORE
        weights = ops.reshape(self.softmax(scores), (*grouped[:3], kv_length))
        output = ops.reshape(self.mix(weights, ops.cast(value, ms.float32)), query.shape)
        return ops.ReduceMax(keep_dims=True)(scores, -1), None, None, ops.cast(output, query.dtype)

    def shard(self, *_strategies: Any) -> FlashAttentionScore:
        """Ignore the sharding strategy: operators are not sharded on a CPU."""
        return self


def look_up_embedding(self: nn.Cell, input_ids: Tensor, weight: Tensor) -> Tensor:
    """Return rows of `weight` (vocab, hidden) for `input_ids` (B, S): (B, S, hidden).

    Replaces `VocabParallelEmbedding.embedding_func`, whose `mint.nn.functional.embedding` has no backward on a CPU.
    The first parameter must be named `self`, because MindSpore's graph parser recognizes methods by this name.
    """
    return ops.gather(weight, input_ids, 0)
