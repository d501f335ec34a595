"""Evaluating and following a run whose nodes have no shared storage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ascend_cpt.checkpoint.locate import check_checkpoint, find_resolved
from ascend_cpt.errors import CheckpointError
from ascend_cpt.run.evaluation.nodes import check_parts, choose_parts, follow, link_parts
from tests.unit.checkpoint.test_gather import make_part


def make_nodes(folder: Path, *steps: int) -> list[Path]:
    """Write the run folders of two nodes; only the second one has run.json."""
    nodes = [folder / name / "run" for name in ("a", "b")]
    for node, ranks in zip(nodes, (range(2), range(2, 4)), strict=True):
        for step in steps:
            make_part(node / f"checkpoint/iteration_{step:08d}", ranks, step=step)
        (node / "metrics.jsonl").touch()
        (node / "resolved.yaml").write_text("model: 1\n", encoding="utf-8")
    (nodes[1] / "run.json").write_text("{}", encoding="utf-8")
    return nodes


def test_newest_step_of_all_nodes_is_linked(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, 10, 12)
    shutil.rmtree(nodes[1] / "checkpoint/iteration_00000012")
    parts = choose_parts(nodes)
    assert [part.name for part in parts] == ["iteration_00000010"] * 2 and parts == choose_parts(parts)
    gathered = link_parts(parts, tmp_path / "scratch")
    assert check_checkpoint(gathered).state.step == 10 and len(check_checkpoint(gathered).state.files) == 5 + 1
    shard = gathered / "cpt-model-0000003-0000004.safetensors"
    assert shard.is_symlink() and shard.read_bytes() == b"\3" * 4 and find_resolved(gathered) is not None
    assert link_parts(parts[:1], tmp_path / "scratch") == parts[0]
    shutil.rmtree(parts[1])
    with pytest.raises(CheckpointError, match="missing from the checkpoint"):
        check_checkpoint(gathered)
    with pytest.raises(CheckpointError, match="no step is complete in all of them"):
        choose_parts(nodes)


def test_following_needs_the_same_steps_on_all_nodes(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, 10, 20)
    run = follow(nodes)
    assert run.main == nodes[1], "the one with run.json has the records"
    assert run.list_steps() == [10, 20] and run.is_over()
    shutil.rmtree(nodes[0] / "checkpoint/iteration_00000020")
    assert run.list_steps() == [10] and not run.is_over()
    assert [part.parents[2].name for part in run.locate(10)] == ["a", "b"]
    assert follow(nodes[:1]).main == nodes[0]


def test_mistakes_with_several_folders(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, 10)
    (nodes[1] / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"none of them has run\.json; give the run folders of all nodes"):
        follow(nodes)
    with pytest.raises(CheckpointError, match="no run has started in this folder"):
        follow([*nodes, tmp_path])
    with pytest.raises(CheckpointError, match="saved by 4 ranks, but no part has the shards of rank 2"):
        check_parts([check_checkpoint(part) for part in choose_parts(nodes[:1])])
