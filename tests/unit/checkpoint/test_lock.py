"""Lock of a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from ascend_cpt.checkpoint.lock import hold_run_folder
from ascend_cpt.errors import CheckpointError


def test_second_run_is_refused_until_the_lock_is_released(tmp_path: Path) -> None:
    with hold_run_folder(tmp_path):
        with pytest.raises(CheckpointError, match=r"another run is using this folder \(process \d+ on"):
            with hold_run_folder(tmp_path):
                pass
    with hold_run_folder(tmp_path):
        pass
