"""What workers tell the launcher of their node by files: the last finished step, and that the run stops itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

PROGRESS_FILE = "ASCEND_CPT_PROGRESS_FILE"
STOP_FILE = "ASCEND_CPT_STOP_FILE"


def report_step(step: int, environ: Mapping[str, str] = os.environ) -> None:
    """Note that step `step` is finished; one process of each node does this. Nothing happens without a launcher."""
    if not (name := environ.get(PROGRESS_FILE)):
        return
    temporary = f"{name}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="ascii") as file:
        file.write(f"{step}\n")
    os.replace(temporary, name)


def read_step(path: Path) -> int | None:
    """Return the last finished step; None when no step was finished or the workers do not report any."""
    try:
        return int(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


def report_own_stop(environ: Mapping[str, str] = os.environ) -> None:
    """Note that the run ends by its own decision (a guard, an alarm), so that another attempt would end there again.

    Any process may do this, before it ends. Nothing happens without a launcher.
    """
    if name := environ.get(STOP_FILE):
        Path(name).touch()
