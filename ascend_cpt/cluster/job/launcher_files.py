"""Files through which workers report to the launcher of their node: the last finished step, and a deliberate stop.

A third one tells the scheduler of msrun that rank 0 is about to train.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

PROGRESS_FILE = "ASCEND_CPT_PROGRESS_FILE"
STOP_FILE = "ASCEND_CPT_STOP_FILE"
READY_NAME = "ready_to_train"
"""Name of the third file, beside the first."""
_POLL_S = 0.1


def report_step(step: int, environ: Mapping[str, str] = os.environ) -> None:
    """Record that step `step` is finished. Called by one process per node; does nothing without a launcher."""
    if not (name := environ.get(PROGRESS_FILE)):
        return
    temporary = f"{name}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="ascii") as file:
        file.write(f"{step}\n")
    os.replace(temporary, name)


def read_step(path: Path) -> int | None:
    """Return the last finished step; None when no step was reported."""
    try:
        return int(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


def report_own_stop(environ: Mapping[str, str] = os.environ) -> None:
    """Record that the run stops deliberately (a guard, an alarm), so a restart would stop at the same point.

    Any process may call this before it exits. Does nothing without a launcher.
    """
    if name := environ.get(STOP_FILE):
        Path(name).touch()


def report_ready(environ: Mapping[str, str] = os.environ) -> None:
    """Record that data and checkpoint are ready. Rank 0 calls this before training; nothing without a launcher."""
    if name := environ.get(PROGRESS_FILE):
        Path(name).with_name(READY_NAME).touch()


def wait_until_ready(environ: Mapping[str, str] = os.environ) -> None:
    """Wait for `report_ready` of rank 0, on the same node. If that never happens, the launcher ends this process."""
    if name := environ.get(PROGRESS_FILE):
        while not Path(name).with_name(READY_NAME).exists():
            time.sleep(_POLL_S)
