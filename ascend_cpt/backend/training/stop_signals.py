"""Graceful stop on SIGTERM and Ctrl-C: the handler records the signal, and all ranks stop after the same step."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import TextIO

from ascend_cpt.cluster.launch.workers.worker_entry import LAUNCHER_PID
from ascend_cpt.errors import CptError

# In order of precedence if ranks have received different signals.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ctrl-C reaches the whole process group, and parents may forward it, so signals this close together count as one.
ECHO_S = 1.0
FIRST_SIGNAL_MESSAGE = b"%s: saving after this step, then exiting (send it again to exit at once without saving)\n"

_received: dict[int, float] = {}


class StoppedBySignal(CptError):
    """The run was stopped by a signal, after saving. The exit code is 128 + the signal's number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def install(console: TextIO) -> None:
    """Install the handlers. Call this from the main thread before the first step.

    Under a launcher, the handler only records the signal. Otherwise, the first signal also prints a line to `console`,
    and a second one ends the process at once.
    """
    _received.clear()
    handler = _record if LAUNCHER_PID in os.environ else partial(_record_and_print, console.fileno())
    for number in SIGNALS:
        signal.signal(number, handler)


def reinstall_handlers() -> None:
    """Reinstall the handlers: MindSpore replaces the SIGINT handler when it starts a data pipeline or runs a graph.

    The graph's handler sends SIGTERM to the process, so Ctrl-C may arrive as SIGTERM. The pipeline's handler
    ends the process.
    """
    for number in SIGNALS:
        signal.signal(number, signal.getsignal(number))


def list_received() -> list[float]:
    """Return 1.0 for each of `SIGNALS` that this process has received, otherwise 0.0."""
    return [float(number in _received) for number in SIGNALS]


def choose_signal(counts: Sequence[float]) -> signal.Signals | None:
    """Return the signal to obey, given the number of ranks that received each of `SIGNALS`."""
    return next((number for number, count in zip(SIGNALS, counts, strict=True) if count > 0), None)


def _record(number: int, _frame: FrameType | None) -> None:
    _received.setdefault(number, time.monotonic())


def _record_and_print(console: int, number: int, frame: FrameType | None) -> None:
    is_first = not _received
    _record(number, frame)
    is_again = time.monotonic() - min(_received.values()) > ECHO_S
    if is_first or is_again:
        # Bypass the stream, because the signal may have interrupted a print.
        with contextlib.suppress(OSError):
            name = signal.Signals(number).name.encode()
            os.write(console, b"interrupted\n" if is_again else FIRST_SIGNAL_MESSAGE % name)
    if is_again:
        os._exit(128 + number)
