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


class _Attention(nn.Cell):
    """Attention of grouped queries, with a backward pass that reads the attention weights twice instead of four times.

    Inputs: query (B, N_kv, N / N_kv * S, D), already scaled; key and value (B, N_kv, S_kv, D); the summand of the
    scores, which has no gradient; and the scores' shape (B, N, S, S_kv). All tensors are float32.
    Outputs: the attention output, in the query's shape, and the attention weights, which must have no gradient.
    """

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.multiply = ops.BatchMatMul()
        self.multiply_by_transposed = ops.BatchMatMul(transpose_b=True)
        self.multiply_transposed = ops.BatchMatMul(transpose_a=True)
        self.softmax = ops.Softmax(axis=-1)
        self.sum = ops.ReduceSum(keep_dims=True)

    def construct(
        self, query: Tensor, key: Tensor, value: Tensor, added: Tensor, scores_shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        scores = ops.reshape(self.multiply_by_transposed(query, key), scores_shape)
        weights = ops.reshape(self.softmax(scores + added), (*query.shape[:3], scores_shape[3]))
        return self.multiply(weights, value), weights

    def bprop(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        added: Tensor,
        scores_shape: tuple[int, ...],
        out: tuple[Tensor, Tensor],
        dout: tuple[Tensor, Tensor],
    ) -> tuple[Any, ...]:
        """Return the gradients of query, key and value.

        The sum over weights * (their gradients) equals the sum over output * (its gradient), which is much smaller.
        """
        output, weights = out
        gradient = dout[0]
        value_gradient = self.multiply_transposed(weights, gradient)
        mean = self.sum(output * gradient, -1)
        scores_gradient = weights * (self.multiply_by_transposed(gradient, value) - mean)
        return (
            self.multiply(scores_gradient, key),
            self.multiply_transposed(scores_gradient, query),
            value_gradient,
            ops.zeros_like(added),
            scores_shape,
        )


class FlashAttentionScore(nn.Cell):
    """Scaled dot-product attention in float32. Replaces `mindspore.ops.operations.nn_ops.FlashAttentionScore`.

    Inputs (layout BNSD; heads N are a multiple of the key-value heads):
        query (B, N, S, D); key and value (B, N_kv, S_kv, D); attn_mask (B, 1, S, S_kv), (B, N, S, S_kv) or (S, S_kv)
        with 1 where a query must not attend to a key, or None.
    Outputs:
        Four, as for the operator: three unused outputs (None), and the attention output (B, N, S, D) in the query's
        dtype.

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
        self.attend = _Attention()

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
    ) -> tuple[None, None, None, Tensor]:
        batch, num_heads, length, head_dim = query.shape
        num_kv_heads, kv_length = key.shape[1], key.shape[2]
        # Queries in a group share a key, so one product per key-value head suffices, without repeating keys and values.
        grouped = (batch, num_kv_heads, num_heads // num_kv_heads * length, head_dim)
        grouped_query = ops.reshape(ops.cast(query, ms.float32) * self.scale, grouped)
        added = (
            ops.zeros((1, 1), ms.float32)
            if attn_mask is None
            else ops.cast(ops.stop_gradient(attn_mask), ms.float32) * MASKED_SCORE
        )
        scores_shape = (batch, num_heads, length, kv_length)
        output, _ = self.attend(
            grouped_query, ops.cast(key, ms.float32), ops.cast(value, ms.float32), added, scores_shape
        )
        return None, None, None, ops.cast(ops.reshape(output, query.shape), query.dtype)

    def shard(self, *_strategies: Any) -> FlashAttentionScore:
        """Ignore the sharding strategy: operators are not sharded on a CPU."""
        return self


def look_up_embedding(self: nn.Cell, input_ids: Tensor, weight: Tensor) -> Tensor:
    """Return rows of `weight` (vocab, hidden) for `input_ids` (B, S): (B, S, hidden).

    Replaces `VocabParallelEmbedding.embedding_func`, whose `mint.nn.functional.embedding` has no backward on a CPU.
    The first parameter must be named `self`, because MindSpore's graph parser recognizes methods by this name.
    """
    return ops.gather(weight, input_ids, 0)
