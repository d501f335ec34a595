"""Files through which workers report to the launcher of their node: the last finished step, and a deliberate end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

PROGRESS_FILE = "ASCEND_CPT_PROGRESS_FILE"
STOP_FILE = "ASCEND_CPT_STOP_FILE"
CONTINUE_FILE = "ASCEND_CPT_CONTINUE_FILE"


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


def request_continuation(environ: Mapping[str, str] = os.environ) -> bool:
    """Ask the launcher to start the job again once all its workers have succeeded; return whether there is one.

    Called by every process of the job.
    """
    name = environ.get(CONTINUE_FILE)
    if name:
        Path(name).touch()
    return bool(name)
