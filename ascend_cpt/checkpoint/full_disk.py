"""Reports a full disk as a CptError, which does not cause an automatic restart."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ascend_cpt.errors import CheckpointError

DISK_FULL_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is exceeded",
    errno.EFBIG: "the file is too large",
}
# safetensors gives the error number only in the message.
OS_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")


@contextmanager
def report_full_disk(folder: Path, doing: str) -> Iterator[None]:
    """Convert errors caused by a full disk in this block to CheckpointError. Other errors propagate.

    Raises:
        CheckpointError: the disk is full, or the quota or file size limit is reached.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = DISK_FULL_REASONS.get(_read_number(error))
        if reason is None:
            raise
        raise CheckpointError(
            f"{folder}: {reason} while {doing}; free space, then run the same command again to resume from the newest "
            "complete checkpoint"
        ) from error


def _read_number(error: OSError | SafetensorError) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    match = OS_ERROR_NUMBER.search(str(error))
    return int(match[1]) if match else 0
