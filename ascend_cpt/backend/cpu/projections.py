"""Linear layers of the transformer on a CPU, without copies of large activations.

MindFormers interleaves gate and up projection in one weight, and therefore splits the activations with a stride of two.
It also transposes the logits. Here, the weight is split and the hidden state is transposed instead, which are much
smaller. The products are the same.
"""

from __future__ import annotations

from typing import Any

from mindformers.parallel_core.training_graph.tensor_parallel.layers import ColumnParallelLinear
from mindformers.parallel_core.training_graph.transformer.mlp import MLPInterleaved
from mindspore import Tensor, ops
from mindspore.ops.operations import Morph


class SplitWeightMLP(MLPInterleaved):
    """MLPInterleaved with one product for the gate and one for the up projection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.multiply = ops.MatMul(transpose_b=True)

    @property
    def can_split_weight(self) -> bool:
        """Whether gate and up projection come from one plain layer. MindSpore reads this once, when it compiles.

        After the network is built, the layer or its product may be replaced, for example to add a low-rank adapter.
        """
        layer = self.linear_fc1
        is_plain = type(layer) is ColumnParallelLinear and isinstance(layer.morphed_forward, Morph)
        has_own_activation = self.activation_type in ("swiglu", "fusedswiglu")
        return bool(
            is_plain and not layer.has_bias and layer.transpose_b and self.gated_linear_unit and not has_own_activation
        )

    def construct(self, hidden_states: Tensor, per_token_scale: Any = None, extra_loss: Any = 0.0) -> Any:
        if not self.can_split_weight:
            return super().construct(hidden_states, per_token_scale, extra_loss)
        layer = self.linear_fc1
        seq_length, batch, size = hidden_states.shape
        weight = ops.cast(layer.weight, layer.compute_dtype)
        pairs = ops.reshape(weight, (weight.shape[0] // 2, 2, size))
        rows = ops.reshape(ops.cast(hidden_states, layer.compute_dtype), (-1, size))
        gate = ops.cast(self.multiply(rows, pairs[:, 0]), hidden_states.dtype)
        up = ops.cast(self.multiply(rows, pairs[:, 1]), hidden_states.dtype)
        hidden = self.mul(self.activation_func(gate) if self.activation_func else gate, up)
        output, output_bias = self.linear_fc2(ops.reshape(hidden, (seq_length, batch, weight.shape[0] // 2)))
        return output, output_bias, extra_loss


class BatchFirstOutputLayer(ColumnParallelLinear):
    """The output layer, whose logits have one row per token, row by row of the batch: (batch * seq_length, vocab)."""

    def construct(self, input_: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Any]:
        batch_first = ops.transpose(input_, (1, 0, 2))
        logits, bias = super().construct(ops.reshape(batch_first, (-1, input_.shape[2])), weight)
        return logits, bias
