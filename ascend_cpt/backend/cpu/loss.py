"""The language-model loss on a CPU, in fewer operators, and the mean over the labels in the whole global batch.

In MindFormers, each process computes the mean over the labels in its own rows, and gradients are averaged over
processes with equal weights. If rows are padded, processes have different numbers of labels. Here, each process divides
its sum by the mean number of labels per process, so that the average over processes is the mean over all labels.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindformers.parallel_core.training_graph.loss_func import CrossEntropyLoss
from mindspore import Tensor, nn, ops
from mindspore.communication import get_group_size
from mindspore.ops.auto_generate import SumExt


class LogSoftmax(nn.Cell):
    """The logarithm of the softmax as one operator. Replaces MindFormers' cell of the same name.

    Inputs: logits (N, C) and labels (N,) int32. Outputs: float32 of shape (N, C), and the labels, where MindFormers
    returns them as one-hot rows. As in MindFormers, the backward pass of `TokenLosses` includes that of this cell.
    """

    def __init__(self, _config: Any = None) -> None:
        super().__init__()
        self.log_softmax = ops.LogSoftmax(axis=-1)
        self.max = ops.ArgMaxWithValue(axis=1, keep_dims=True)  # used by row_scorer.py, as in MindFormers' cell

    def construct(self, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return self.log_softmax(ops.cast(logits, ms.float32)), label

    def bprop(self, logits: Tensor, label: Tensor, _out: Any, dout: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return ops.cast(dout[0], logits.dtype), ops.zeros_like(label)


class TokenLosses(nn.Cell):
    """Each token's loss. Replaces MindFormers' `_NLLLoss`; a negative label has the loss 0.

    Inputs: the outputs of `LogSoftmax`. Output: float32 of shape (N,), in nats.
    """

    def __init__(self, _config: Any = None) -> None:
        super().__init__()
        self.select = ops.GatherD()
        self.add_at = ops.TensorScatterAdd()

    def construct(self, log_softmax: Tensor, label: Tensor) -> Tensor:
        chosen = self.select(log_softmax, 1, ops.reshape(ops.maximum(label, 0), (-1, 1)))
        return ops.neg(ops.reshape(chosen, (-1,))) * ops.cast(label >= 0, ms.float32)

    def bprop(self, log_softmax: Tensor, label: Tensor, _out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of the logits: (softmax - one-hot label) * dout."""
        gradient = ops.exp(log_softmax) * ops.reshape(dout, (-1, 1))
        column = ops.maximum(label, 0)
        row = ops.arange(0, label.shape[0]).astype(label.dtype)
        is_label = ops.cast(label >= 0, ms.float32)
        gradient = self.add_at(gradient, ops.stack((row, column), 1), ops.neg(dout) * is_label)
        return gradient, ops.zeros_like(label)


class GlobalMean(nn.Cell):
    """This process's part of the mean over the labels of all processes."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM)
        self.num_processes = get_group_size()
        self.sum = SumExt()

    def construct(self, losses: Tensor, mask: Tensor) -> Tensor:
        """Return a float32 value of shape (1,) from this process's token losses and its float32 label mask."""
        num_labels = ops.stop_gradient(self.all_reduce(ops.reshape(self.sum(mask), (1,))))
        return self.sum(ops.mul(losses, mask)) / ((num_labels + 1e-8) / self.num_processes)


class GlobalMeanLoss(CrossEntropyLoss):
    """Replaces CrossEntropyLoss under data parallelism, with the same arguments and shapes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mean = GlobalMean()

    def construct(self, logits: Tensor, label: Tensor, input_mask: Tensor) -> Tensor:
        """Return this process's part of the loss, float32 of shape (1,)."""
        losses = self._nllloss(*self._log_softmax(logits, label))
        return self.mean(losses, ops.cast(ops.reshape(input_mask, (-1,)), ms.float32))


def make_loss(*args: Any, **kwargs: Any) -> CrossEntropyLoss:
    """Return a network's loss cell. Replaces the class in MindFormers' GPTModel."""
    is_parallel = ms.get_auto_parallel_context("parallel_mode") == ms.ParallelMode.DATA_PARALLEL
    return GlobalMeanLoss(*args, **kwargs) if is_parallel else CrossEntropyLoss(*args, **kwargs)
