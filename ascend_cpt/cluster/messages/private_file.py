"""Reads files that hold a secret."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_regular_file(path: Path, max_bytes: int) -> tuple[bytes, os.stat_result]:
    """Return the first `max_bytes` bytes of a file and its status, from the same open file; no bytes if not regular.

    Raises:
        OSError: when it cannot be read.
        ValueError: when the path contains a null character.
    """
    # Without O_NONBLOCK a FIFO would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        return os.read(descriptor, max_bytes) if stat.S_ISREG(status.st_mode) else b"", status
    finally:
        os.close(descriptor)
