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
    returns them as one-hot rows.
    """

    def __init__(self, _config: Any = None) -> None:
        super().__init__()
        self.log_softmax = ops.LogSoftmax(axis=-1)
        self.max = ops.ArgMaxWithValue(axis=1, keep_dims=True)

    def construct(self, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return self.log_softmax(ops.cast(logits, ms.float32)), label


class TokenLosses(nn.Cell):
    """Each token's loss. Replaces MindFormers' `_NLLLoss`; a label of -100 has the loss 0.

    Inputs: the outputs of `LogSoftmax`. Output: float32 of shape (N,), in nats.
    """

    def __init__(self, _config: Any = None) -> None:
        super().__init__()
        self.select = ops.NLLLoss(reduction="none", ignore_index=-100)

    def construct(self, log_softmax: Tensor, label: Tensor) -> Tensor:
        class_weights = ops.ones((log_softmax.shape[-1],), ms.float32)
        return self.select(log_softmax, label, class_weights)[0]


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
