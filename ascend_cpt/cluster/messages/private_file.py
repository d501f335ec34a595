"""Reads files that hold a secret."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_regular_file(path: Path, max_bytes: int) -> tuple[bytes, os.stat_result]:
    """Return a file's first `max_bytes` bytes (none if it is not regular) and its status, from one open file.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when the path contains a null character.
    """
    # Without O_NONBLOCK, opening a FIFO would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        return os.read(descriptor, max_bytes) if stat.S_ISREG(status.st_mode) else b"", status
    finally:
        os.close(descriptor)
