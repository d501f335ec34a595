"""SIGTERM asks a run to save and end: the process notes it, and after a step all ranks come to the same answer."""

from __future__ import annotations

import signal
from types import FrameType

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore.mint.distributed import all_reduce

from ascend_cpt.backend.collective import is_pure_data_parallel, sum_over_ranks
from ascend_cpt.errors import CptError

SIGNAL = signal.SIGTERM

_received: list[int] = []


class StoppedBySignal(CptError):
    """The run was asked to end, and has saved. The exit code is that of a process which the signal ended."""

    exit_code = 128 + SIGNAL


def install() -> None:
    """Note SIGTERM from now on instead of ending at once; to be called by the main thread before the first step."""
    _received.clear()
    signal.signal(SIGNAL, _note)


def is_requested(num_ranks: int) -> bool:
    """Return whether any rank has got the signal; every rank asks after the same step and gets the same answer.

    A rank may hear it a step earlier than another, and then only one of them would save and leave.
    """
    own = np.array([float(bool(_received))])
    if num_ranks == 1:
        return bool(own[0])
    if is_pure_data_parallel():
        return bool(sum_over_ranks(own, num_ranks)[0] > 0)
    total = Tensor(own, ms.float32)
    all_reduce(total)  # in place
    return bool(total.asnumpy()[0] > 0)


def _note(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
