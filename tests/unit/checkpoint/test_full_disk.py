from __future__ import annotations

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from ascend_cpt.checkpoint.full_disk import report_full_disk
from ascend_cpt.errors import CheckpointError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk quota is exceeded"),
        (SafetensorError("Error while serializing: I/O error: No space (os error 28)"), "the disk is full"),
        (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), "the file is too large"),
    ],
)
def test_full_disk_is_a_checkpoint_error(error: Exception, reason: str) -> None:
    with pytest.raises(CheckpointError) as caught, report_full_disk(Path("run/x"), "saving"):
        raise error
    assert str(caught.value).startswith(f"run/x: {reason} while saving; free space")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), SafetensorError("what"), ValueError("x")])
def test_other_errors_propagate(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, report_full_disk(Path("run/x"), "saving"):
        raise error
    assert caught.value is error
