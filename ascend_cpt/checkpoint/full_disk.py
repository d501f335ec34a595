"""A full disk is the user's to empty: one line, and no restart that would fill it again."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ascend_cpt.errors import CheckpointError

FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file is too large"}
# The library has the number in its text only.
NUMBER_IN_TEXT = re.compile(r"\(os error (\d+)\)")


@contextmanager
def tell_full_disk(folder: Path, doing: str) -> Iterator[None]:
    """Turn an error of a full disk in this block into one line about `folder`; other errors pass.

    Raises:
        CheckpointError: when the disk is full, or the user may write no more.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = FULL.get(_read_number(error))
        if reason is None:
            raise
        raise CheckpointError(
            f"{folder}: {reason} while {doing}; free space, then the same command goes on from the newest complete "
            "checkpoint"
        ) from error


def _read_number(error: OSError | SafetensorError) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    match = NUMBER_IN_TEXT.search(str(error))
    return int(match[1]) if match else 0
