"""Finding the newest complete checkpoint, skipping incomplete ones, and deleting old ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.checkpoint.fingerprint import describe_differences
from ascend_cpt.checkpoint.locate import find_newest_complete, list_complete, locate_checkpoint, remove_old_checkpoints
from ascend_cpt.checkpoint.state import STATE_NAME, RunState, read_state, write_state
from ascend_cpt.errors import CheckpointError


def make_checkpoint(root: Path, step: int, *, complete: bool = True) -> Path:
    folder = root / f"iteration_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    if complete:
        state = RunState(
            step=step,
            total_steps=100,
            tokens=step,
            position=step,
            fingerprint={"seed": 1},
            files={"model.safetensors": 100},
        )
        write_state(folder, state)
    return folder


def test_newest_complete_is_found(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 20)
    make_checkpoint(tmp_path, 30, complete=False)
    cut = make_checkpoint(tmp_path, 25)
    (cut / "model.safetensors").write_bytes(b"x" * 99)
    found, skipped = find_newest_complete(tmp_path)
    assert found is not None and found.state.step == 20
    assert len(skipped) == 2
    assert STATE_NAME in skipped[0] and "99 bytes but was saved with 100" in skipped[1]


def empty_state(folder: Path) -> None:
    (folder / STATE_NAME).write_text("")


def delete_state(folder: Path) -> None:
    (folder / STATE_NAME).unlink()


def raise_version(folder: Path) -> None:
    write_state(folder, dataclasses.replace(read_state(folder), version=9))


def delete_model(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncate_model(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 99)


@pytest.mark.parametrize("damage", [empty_state, delete_state, raise_version, delete_model, truncate_model])
def test_another_step_is_advised_only_if_the_user_gave_the_step(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = make_checkpoint(tmp_path / "run" / "checkpoint", 10)
    damage(folder)
    with pytest.raises(CheckpointError) as given:
        locate_checkpoint(folder)
    reason, _, advice = str(given.value).rpartition("; ")
    assert advice == "choose another step" and reason.startswith(str(folder))
    assert find_newest_complete(folder.parent) == (None, [reason])
    with pytest.raises(CheckpointError) as newest:
        locate_checkpoint(tmp_path / "run")
    assert str(newest.value) == f"{tmp_path / 'run'}: no complete checkpoint ({reason})"


def test_no_checkpoint(tmp_path: Path) -> None:
    assert find_newest_complete(tmp_path / "nowhere") == (None, [])
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        locate_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        locate_checkpoint(tmp_path)


def test_run_folder_checkpoint_folder_and_step_folder(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "run" / "checkpoint", 10)
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoint", folder):
        assert locate_checkpoint(path).folder == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing from the checkpoint"):
        locate_checkpoint(folder)


def test_old_checkpoints_are_deleted_but_not_the_newest_complete_one(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        make_checkpoint(tmp_path, step)
    half = make_checkpoint(tmp_path, 15, complete=False)
    newest_half = make_checkpoint(tmp_path, 40, complete=False)
    assert remove_old_checkpoints(tmp_path, 0) == []
    removed = remove_old_checkpoints(tmp_path, 1)
    assert sorted(path.name[-2:] for path in removed) == ["10", "15", "20"]
    assert newest_half.exists() and not half.exists()
    assert find_newest_complete(tmp_path)[0] is not None


def test_multiples_of_keep_every_are_kept(tmp_path: Path) -> None:
    for step in range(10, 80, 10):
        make_checkpoint(tmp_path, step)
    removed = remove_old_checkpoints(tmp_path, 2, keep_every_steps=30)
    assert sorted(path.name[-2:] for path in removed) == ["10", "20", "40"]


def test_list_complete(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 20, complete=False)
    make_checkpoint(tmp_path, 30)
    complete, incomplete = list_complete(tmp_path)
    assert sorted(complete) == [10, 30] and len(incomplete) == 1


def test_folder_just_written_is_kept(tmp_path: Path) -> None:
    just_written = make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 20)
    assert remove_old_checkpoints(tmp_path, 1, keep=just_written) == []
    assert just_written.exists()


def test_invalid_state_file(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 10)
    (folder / STATE_NAME).write_text('{"step": 1')
    with pytest.raises(CheckpointError, match="cannot be read"):
        locate_checkpoint(folder)


def test_describe_differences() -> None:
    saved = {"seed": 1, "schedule": {"peak_lr": 1e-3, "kind": "cosine"}}
    current = {"seed": 1, "schedule": {"peak_lr": 2e-3, "kind": "cosine"}, "new": True}
    assert describe_differences(saved, current) == ["new: None → True", "schedule.peak_lr: 0.001 → 0.002"]
    assert describe_differences(saved, saved) == []
