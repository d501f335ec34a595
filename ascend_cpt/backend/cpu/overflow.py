"""The overflow check for MFTrainOneStepCell on a CPU, which tests whether all gradients are finite.

MindFormers reads the NPU's status registers; on a CPU, the gradients are checked instead. The functions' first
parameter must be named `self`, because MindSpore's graph parser recognizes methods by this name.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

_count_overflow = ops.MultitypeFuncGraph("count_overflow")


@_count_overflow.register("Tensor")
def _count_tensor_overflow(gradient: Tensor) -> Tensor:
    """Return 1.0 if a gradient contains an infinity or a NaN, otherwise 0.0.

    An infinity or a NaN makes the sum of the gradient infinite or NaN. Reading the gradient once is much faster than
    testing each element. A sum above 3e38 also counts as an overflow.
    """
    total = ops.ReduceSum()(gradient, ())
    return ops.cast(ops.logical_not(ops.IsFinite()(total)), ms.float32)


def start_overflow_check(self: nn.Cell, _pre_cond: Any, compute_input: Any) -> tuple[Tensor, Any]:
    """Replacement for `start_overflow_check`: there is no status register to clear."""
    return Tensor([0], ms.int32), compute_input


def get_overflow_status(self: Any, _status: Tensor, gradients: tuple[Tensor, ...]) -> Tensor:
    """Replacement for `get_overflow_status`: a bool scalar that is True if any worker has a non-finite gradient."""
    num_overflows = ops.addn(self.hyper_map(_count_overflow, gradients))
    if self.is_distributed:
        num_overflows = self.allreduce(num_overflows)
    return ops.greater(num_overflows, 0.0)
