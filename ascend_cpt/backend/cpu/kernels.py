"""CPU versions of the Ascend-only operators in MindFormers' mcore models, with the operators' own signatures.

Each is composed of MindSpore operators that have CPU kernels, forward and backward, in graph mode.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from ascend_cpt.errors import ConfigError

# Added to the scores of masked pairs. Finite, so that the row of a padding token, which may attend to nothing, becomes
# a mean over all values instead of NaN.
MASKED_SCORE = -1e9


class Outer(nn.Cell):
    """Outer product: (n,) and (m,) → (n, m). Replaces `mindspore.ops.auto_generate.Outer`."""

    def construct(self, left: Tensor, right: Tensor) -> Tensor:
        return ops.mul(ops.reshape(left, (-1, 1)), ops.reshape(right, (1, -1)))

    def shard(self, *_strategies: Any) -> Outer:
        """Accept and ignore a sharding strategy: on a CPU every operator is whole."""
        return self


class FlashAttentionScore(nn.Cell):
    """Scaled dot-product attention in float32. Replaces `mindspore.ops.operations.nn_ops.FlashAttentionScore`.

    Inputs (layout BNSD; heads N are a multiple of the key-value heads):
        query (B, N, S, D); key and value (B, N_kv, S_kv, D); attn_mask (B, 1, S, S_kv), (B, N, S, S_kv) or (S, S_kv)
        with 1 where a query must not see a key, or None.
    Outputs:
        The four of the operator: the row maximum of the scores (B, N, S, 1), two that no caller reads (None), and the
        attention output (B, N, S, D) in the query's type.

    Raises:
        ConfigError: for what this CPU version does not do (another layout, dropout, compressed or sliding masks).
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
            raise ConfigError(f"attention on CPU: input_layout is {input_layout}, only BNSD is possible")
        if keep_prob != 1.0:
            raise ConfigError(f"attention on CPU: attention_dropout is {1 - keep_prob:g}, only 0 is possible")
        if sparse_mode != 0:
            raise ConfigError(
                f"attention on CPU: sparse_mode is {sparse_mode}, only 0 is possible: "
                "set use_attn_mask_compression and use_eod_attn_mask_compression to False, and no window_size"
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
        # The queries of a group share their key: one product per key-value head, without repeating keys and values.
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
        """Accept and ignore a sharding strategy: on a CPU every operator is whole."""
        return self


def look_up_embedding(self: nn.Cell, input_ids: Tensor, weight: Tensor) -> Tensor:
    """Return rows of `weight` (vocab, hidden) for `input_ids` (B, S): (B, S, hidden).

    Replaces `VocabParallelEmbedding.embedding_func`, whose `mint.nn.functional.embedding` has no backward on a CPU.
    It becomes a method: MindSpore's graph parser knows one by the name `self`.
    """
    return ops.gather(weight, input_ids, 0)
