"""The best checkpoints: choice, retention, and opening RUN/best."""

from __future__ import annotations

from pathlib import Path

import pytest

from ascend_cpt.checkpoint.best import find_best, mark_best
from ascend_cpt.checkpoint.locate import locate_checkpoint, remove_old_checkpoints
from ascend_cpt.errors import CheckpointError
from tests.unit.checkpoint.test_locate import make_checkpoint


def steps(folders: list[Path]) -> list[int]:
    return [int(folder.name[-8:]) for folder in folders]


def test_lowest_values_of_complete_checkpoints_with_a_value(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        make_checkpoint(tmp_path, step, complete=step != 20)
    values = {0: 0.1, 10: 3.0, 20: 1.0, 30: 2.0, 50: 0.5}
    assert steps(find_best(tmp_path, values, 1)) == [30]
    assert steps(find_best(tmp_path, values, 5)) == [30, 10]
    assert find_best(tmp_path, {}, 5) == []


def test_of_equal_values_the_later_step_is_better(tmp_path: Path) -> None:
    for step in (10, 20):
        make_checkpoint(tmp_path, step)
    assert steps(find_best(tmp_path, {10: 1.0, 20: 1.0}, 1)) == [20]


def test_best_are_not_deleted(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        make_checkpoint(tmp_path, step)
    best = find_best(tmp_path, {10: 2.0, 20: 1.0, 30: 4.0, 40: 3.0}, 2)
    assert steps(sorted(remove_old_checkpoints(tmp_path, 1, best=best))) == [30, 40]
    # A best one among the newest counts as one of the newest.
    assert steps(remove_old_checkpoints(tmp_path, 1, best=[tmp_path / "iteration_00000050"])) == [20, 10]


def test_run_best_opens_the_marked_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "run" / "checkpoint"
    folder = make_checkpoint(root, 10)
    make_checkpoint(root, 20)
    with pytest.raises(CheckpointError, match="no best checkpoint is recorded; give .*/run, or set"):
        locate_checkpoint(tmp_path / "run/best")
    mark_best(root, folder)
    assert locate_checkpoint(tmp_path / "run/best").folder == folder
    assert locate_checkpoint(tmp_path / "run").state.step == 20
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="iteration_00000010/model.safetensors: missing"):
        locate_checkpoint(tmp_path / "run/best")


def test_a_run_called_best_is_a_run(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "best" / "checkpoint", 10)
    assert locate_checkpoint(tmp_path / "best").folder == folder
