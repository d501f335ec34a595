"""Locks a run folder so that only one run writes to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ascend_cpt.errors import CheckpointError
from ascend_cpt.locks import take_lock

LOCK_NAME = ".lock"


@contextmanager
def hold_run_folder(run_dir: Path) -> Iterator[None]:
    """Hold a run folder's lock until the block or the process ends.

    Raises:
        CheckpointError: another run holds the lock.
    """
    descriptor = os.open(run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not take_lock(descriptor, run_dir / LOCK_NAME, risk="do not start a second run in this folder"):
            holder = os.read(descriptor, 100).decode(errors="replace").strip()
            raise CheckpointError(
                f"{run_dir}: another run is using this folder ({holder or 'unknown process'}); wait for it, or choose "
                "another folder with --set cpt.run_name=NAME"
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
        yield
    finally:
        os.close(descriptor)
