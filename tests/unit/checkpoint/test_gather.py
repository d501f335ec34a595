"""Combining the parts of a checkpoint from several nodes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ascend_cpt.checkpoint.checksums import checksum_file
from ascend_cpt.checkpoint.gather import gather_checkpoint
from ascend_cpt.checkpoint.locate import check_checkpoint, find_resolved, locate_checkpoint
from ascend_cpt.checkpoint.state import RunState, write_state
from ascend_cpt.checkpoint.verify import check_file
from ascend_cpt.errors import CheckpointError


def make_part(folder: Path, ranks: range, *, step: int = 10, seed: int = 1) -> Path:
    """Write the part of a node: files of some ranks and the files that every node has."""
    folder.mkdir(parents=True)
    for rank in ranks:
        (folder / f"cpt-model-{rank:07d}-0000004.safetensors").write_bytes(bytes([rank]) * (rank + 1))
    (folder / "common.json").write_text("{}")
    state = RunState(
        step=step,
        total_steps=20,
        tokens=1,
        position=1,
        fingerprint={"seed": seed},
        files={path.name: path.stat().st_size for path in folder.iterdir()},
        checksums={path.name: checksum_file(path) for path in folder.iterdir()},
    )
    write_state(folder, state)
    return folder


def test_all_parts_are_combined(tmp_path: Path) -> None:
    parts = [
        make_part(tmp_path / "a/iteration_00000010", range(2)),
        make_part(tmp_path / "b/iteration_00000010", range(2, 4)),
    ]
    gathered = gather_checkpoint(parts, tmp_path / "all/iteration_00000010")
    assert check_checkpoint(gathered.folder).state.step == 10
    assert len(gathered.state.files) == 5
    assert locate_checkpoint(gathered.folder) == gathered
    assert (gathered.folder / "cpt-model-0000003-0000004.safetensors").read_bytes() == b"\3" * 4


def test_gathered_folder_has_any_name_and_the_resolved_configuration(tmp_path: Path) -> None:
    part = make_part(tmp_path / "a/run/checkpoint/iteration_00000010", range(4))
    (tmp_path / "a/run/resolved.yaml").write_text("model: 1\n")
    gathered = gather_checkpoint([part], tmp_path / "gathered")
    assert locate_checkpoint(tmp_path / "gathered") == gathered
    resolved = find_resolved(tmp_path / "gathered")
    assert resolved is not None and resolved.read_text() == "model: 1\n"


def test_missing_ranks_are_refused(tmp_path: Path) -> None:
    part = make_part(tmp_path / "a/iteration_00000010", range(2))
    with pytest.raises(
        CheckpointError, match="saved by 4 ranks, but no part has the shards of rank 2; give the folders"
    ):
        gather_checkpoint([part], tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"step": 12}, "has step 12, but .* has step 10"), ({"seed": 2}, "from a different run than .*seed: 1 → 2")],
)
def test_parts_of_different_steps_or_runs(tmp_path: Path, change: dict[str, int], message: str) -> None:
    parts = [make_part(tmp_path / "a/iteration_00000010", range(2))]
    parts.append(make_part(tmp_path / "b/iteration_00000010", range(2, 4), **change))
    with pytest.raises(CheckpointError, match=message):
        gather_checkpoint(parts, tmp_path / "all")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_damaged_parts_and_existing_output_are_refused(tmp_path: Path) -> None:
    part = make_part(tmp_path / "a/iteration_00000010", range(2))
    with pytest.raises(CheckpointError, match="already exists"):
        gather_checkpoint([part], tmp_path / "a")
    other = make_part(tmp_path / "b/iteration_00000010", range(1, 3))
    (other / "cpt-model-0000001-0000004.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="has 1 bytes but was saved with 2"):
        gather_checkpoint([part, other], tmp_path / "all")


def change_state(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "cpt_state.json").read_text())
    del record["checksum"]
    (folder / "cpt_state.json").write_text(json.dumps({**record, **changes}))


@pytest.mark.parametrize("name", ["../../evil.txt", "/tmp/evil.txt", "..", "sub/evil.txt"])
def test_nothing_is_written_outside_the_output(tmp_path: Path, name: str) -> None:
    part = make_part(tmp_path / "a/run/iteration_00000010", range(4))
    (tmp_path / "a/evil.txt").write_text("x")
    change_state(part, files={name: 1}, checksums={})
    with pytest.raises(CheckpointError, match="is not a plain file name"):
        gather_checkpoint([part], tmp_path / "out/deep/all")
    assert not list(tmp_path.glob("out/**/evil.txt"))


def test_a_damaged_file_is_refused_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = make_part(tmp_path / "a/iteration_00000010", range(4))
    path = part / "cpt-model-0000002-0000004.safetensors"
    content = path.read_bytes()
    path.write_bytes(b"\7" * len(content))
    with pytest.raises(CheckpointError, match=f"{path}: damaged: .*; copy it again from its node"):
        gather_checkpoint([part], tmp_path / "all")
    assert sorted(os.listdir(tmp_path)) == ["a"]
    hasty = gather_checkpoint([part], tmp_path / "all", verify=False)
    with pytest.raises(CheckpointError, match="damaged"):
        check_file(hasty.folder / path.name, len(content), hasty.state.checksums[path.name])
    assert not caplog.text
    change_state(part, checksums={})
    old = gather_checkpoint([part], tmp_path / "old")
    assert "saved by an earlier version without checksums, so it is not verified" in caplog.text
    for name, size_bytes in old.state.files.items():
        check_file(old.folder / name, size_bytes, old.state.checksums[name])


def test_a_name_that_states_many_ranks(tmp_path: Path) -> None:
    part = make_part(tmp_path / "a/iteration_00000010", range(1))
    (part / "cpt-model-0000000-0000004.safetensors").rename(part / "cpt-model-0-999999999999.safetensors")
    change_state(part, files={"cpt-model-0-999999999999.safetensors": 1}, checksums={})
    with pytest.raises(CheckpointError, match="saved by 999999999999 ranks, but no part has the shards of rank 1"):
        gather_checkpoint([part], tmp_path / "all")
