"""Collective operations, and this process's rank."""

from __future__ import annotations

import functools

import mindspore as ms
import numpy as np
from mindformers.utils.parallel_utils import barrier_world
from mindspore import Tensor, nn, ops
from mindspore.communication import get_group_size, get_rank
from mindspore.mint.distributed import all_reduce


class _SumOverRanks(nn.Cell):
    """A cell with a single AllReduce, because the functional form has no CPU kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM)

    def construct(self, values: Tensor) -> Tensor:
        return self.all_reduce(values)


@functools.cache
def _get_sum_cell() -> _SumOverRanks:
    return _SumOverRanks()


def is_on_cpu() -> bool:
    """Return whether the network runs on the host, where tensors and their NumPy arrays share memory."""
    return ms.get_context("device_target") == "CPU"


def is_pure_data_parallel() -> bool:
    """Return whether every rank holds the whole model (the only mode that supports several CPU processes)."""
    return ms.get_auto_parallel_context("parallel_mode") in ("data_parallel", "stand_alone")


def sum_over_ranks(values: np.ndarray, num_ranks: int) -> np.ndarray:
    """Sum a one-dimensional float array element-wise over all ranks; returns float32."""
    own = values.astype(np.float32)
    if num_ranks == 1:
        return own
    tensor = Tensor(own)
    if is_pure_data_parallel():
        tensor = _get_sum_cell()(tensor)
    else:
        # In semi-auto parallel mode, a separate graph must not contain communication operators.
        all_reduce(tensor)  # in place
    total: np.ndarray = tensor.asnumpy()
    return total


def wait_for_ranks(num_ranks: int) -> None:
    """Block until every rank has called this."""
    if is_pure_data_parallel():
        sum_over_ranks(np.zeros(1), num_ranks)
    else:
        barrier_world("ranks to reach the same point")


def get_rank_and_size(use_parallel: bool) -> tuple[int, int]:
    """Return this process's rank and the number of ranks."""
    return (get_rank(), get_group_size()) if use_parallel else (0, 1)
