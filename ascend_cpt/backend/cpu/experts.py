"""CPU versions of the router's top-k and of the experts, which use Ascend operators in MindFormers.

MindFormers sorts the tokens by expert and multiplies each expert's tokens with its weights (TopkExt, SortExt,
IndexSelect, GroupedMatmul, Swiglu, MoveTo: none has a CPU kernel). Here, every expert computes every token in two
matrix products, and the outputs of the experts that were not chosen are multiplied by 0. The results are the same. The
cost is that of all experts, which suits the tiny models that are trained on a CPU.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindformers.parallel_core.training_graph.transformer.moe.ffn import FFNGroupedGEMM
from mindspore import Tensor, nn, ops


class TopK(nn.Cell):
    """The k largest values along the last axis, in decreasing order, and their indices. Replaces TopkExt."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.top_k = ops.TopK(sorted=True)

    def construct(self, values: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
        return self.top_k(values, num_chosen)

    def recompute(self, *_mode: Any, **_settings: Any) -> TopK:
        """Ignore the setting: nothing is recomputed on a CPU."""
        return self

    def shard(self, *_strategies: Any, **_named: Any) -> TopK:
        """Ignore the sharding strategy: operators are not sharded on a CPU."""
        return self


class DenseExperts(FFNGroupedGEMM):
    """The experts, computed for all tokens. Replaces FFNGroupedGEMM, with the same weights."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.one, self.zero = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, tokens: Tensor, probs: Tensor, routing_map: Tensor) -> Tensor:
        """Return the output (1, tokens, hidden) from tokens, and each token's weights and experts (1, tokens, k)."""
        num_tokens, num_experts = tokens.shape[1], self.num_local_experts
        hidden, inner = self.hidden_size, self.moe_ffn_hidden_size
        first, second = (ops.cast(weight, self.compute_dtype) for weight in (self.weight1, self.weight2))
        first = ops.transpose(ops.reshape(first, (num_experts, hidden, 2 * inner)), (1, 0, 2))
        rows = ops.reshape(ops.cast(tokens, self.compute_dtype), (num_tokens, hidden))
        both = ops.matmul(rows, ops.reshape(first, (hidden, num_experts * 2 * inner)))
        both = ops.reshape(both, (num_tokens, num_experts, 2, inner))
        gate, up = both[:, :, 0], both[:, :, 1]
        chosen = ops.one_hot(routing_map[0], num_experts, self.one, self.zero)
        weights = ops.reduce_sum(chosen * ops.expand_dims(ops.cast(probs[0], ms.float32), -1), 1)
        inside = gate * ops.sigmoid(gate) * up * ops.cast(ops.expand_dims(weights, -1), self.compute_dtype)
        output = ops.matmul(ops.reshape(inside, (num_tokens, num_experts * inner)), second)
        return ops.cast(ops.reshape(output, tokens.shape), tokens.dtype)
