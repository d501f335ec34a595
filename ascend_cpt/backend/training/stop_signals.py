"""SIGTERM and Ctrl-C ask a run to save and end: the process notes it, and after a step all ranks come to one answer."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import partial
from types import FrameType
from typing import TextIO

import numpy as np

from ascend_cpt.backend.collectives import sum_over_ranks
from ascend_cpt.cluster.launch.workers.worker_entry import LAUNCHER_PID
from ascend_cpt.errors import CptError

# The first of them that any rank has got names the stop.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A terminal's Ctrl-C reaches a process and its parents, which may pass it on: that is one request.
ECHO_S = 1.0
ANSWER = b"%s: saves after this step and ends (once more: ends at once, without saving)\n"

_received: dict[int, float] = {}


class StoppedBySignal(CptError):
    """The run was asked to end, and has saved. The exit code is that of a process which the signal ended."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def install(console: TextIO) -> None:
    """Note the signals from now on instead of ending; to be called by the main thread before the first step.

    Without a launcher, which does both, the first one is answered on `console`, and the next ends the process at once.
    """
    _received.clear()
    answer = _note if LAUNCHER_PID in os.environ else partial(_answer, console.fileno())
    for number in SIGNALS:
        signal.signal(number, answer)


def keep_listening() -> None:
    """Take Ctrl-C back: MindSpore puts a handler of its own on it whenever it starts a data pipeline or runs a graph.

    That of a graph sends SIGTERM to the process, so that Ctrl-C may well come by this name; the other one ends it.
    """
    for number in SIGNALS:
        signal.signal(number, signal.getsignal(number))


def find_request(num_ranks: int) -> signal.Signals | None:
    """Return the signal that any rank has got, or None; every rank asks after the same step and gets the same answer.

    A rank may hear it a step earlier than another, and then only one of them would save and leave.
    """
    total = sum_over_ranks(np.array([float(number in _received) for number in SIGNALS]), num_ranks)
    return next((number for number, count in zip(SIGNALS, total, strict=True) if count > 0), None)


def _note(number: int, _frame: FrameType | None) -> None:
    _received.setdefault(number, time.monotonic())


def _answer(console: int, number: int, frame: FrameType | None) -> None:
    is_first = not _received
    _note(number, frame)
    is_again = time.monotonic() - min(_received.values()) > ECHO_S
    if is_first or is_again:
        # Not through the stream: the signal may have come in the middle of a print.
        with contextlib.suppress(OSError):
            os.write(console, b"interrupted\n" if is_again else ANSWER % signal.Signals(number).name.encode())
    if is_again:
        os._exit(128 + number)
