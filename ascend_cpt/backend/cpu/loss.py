"""The language-model loss across several CPU processes: the mean over the labels in the whole global batch.

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
        log_softmax, one_hot = self._log_softmax(logits, label)
        losses = self._nllloss(log_softmax, one_hot)
        return self.mean(losses, ops.cast(ops.reshape(input_mask, (-1,)), ms.float32))


def make_loss(*args: Any, **kwargs: Any) -> CrossEntropyLoss:
    """Return a network's loss cell. Replaces the class in MindFormers' GPTModel."""
    is_parallel = ms.get_auto_parallel_context("parallel_mode") == ms.ParallelMode.DATA_PARALLEL
    return GlobalMeanLoss(*args, **kwargs) if is_parallel else CrossEntropyLoss(*args, **kwargs)
