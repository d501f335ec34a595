"""The compile cache: a changed configuration, layout, code or environment has another key; damaged graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.run.launch.compile_cache import find_cache_folder, hash_code, is_complete, mark_complete, prepare_cache

SECTIONS: dict[str, Any] = {
    "optimizer": {"weight_decay": 0.1},
    "parallel_config": {"model_parallel": 1},
    "lr_schedule": {"segments": [{"start_lr": 0.0, "end_lr": 1e-3}]},
    "load_checkpoint": "",
    "resume_training": False,
}
ENVIRONMENT = {"HOME": "/root", "MS_ALLOC_CONF": "enable_vmm:True", "MS_SCHED_PORT": "8118"}


def find(run_dir: Path, *, sections: Any = None, cpt: Any = None, world_size: int = 1, environ: Any = None) -> Path:
    return find_cache_folder(
        run_dir,
        {**SECTIONS, **(sections or {})},
        {"seq_length": 8, **(cpt or {})},
        world_size=world_size,
        environ={**ENVIRONMENT, **(environ or {})},
    )


@pytest.mark.parametrize(
    "change",
    [
        {"sections": {"optimizer": {"weight_decay": 0.2}}},
        {"sections": {"lr_schedule": {"segments": [{"start_lr": 0.0, "end_lr": 2e-3}]}}},
        {"sections": {"parallel_config": {"model_parallel": 2}}},
        {"cpt": {"guards": {"loss_spike": {}}}},
        {"world_size": 2},
        {"environ": {"MS_ALLOC_CONF": "enable_vmm:False"}},
        {"environ": {"ASCEND_CPT_SOFTNPU": "1"}},
        {"environ": {"MS_DEV_SOMETHING": "1"}},
    ],
)
def test_a_change_has_its_own_graph(tmp_path: Path, change: dict[str, Any]) -> None:
    assert find(tmp_path, **change) != find(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sections": {"load_checkpoint": "/run/checkpoint/iteration_00000004", "resume_training": True}},
        {"environ": {"MS_SCHED_PORT": "9000", "MS_NODE_ID": "x", "HOME": "/other"}},
    ],
)
def test_a_restart_has_the_same_graph(tmp_path: Path, change: dict[str, Any]) -> None:
    assert find(tmp_path, **change) == find(tmp_path)
    assert find(tmp_path).parent == tmp_path / "compile_cache"


def test_code_is_part_of_the_key(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    before = hash_code(tmp_path)
    (tmp_path / "a.py").write_text("x = 2\n")
    changed = hash_code(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({before, changed, hash_code(tmp_path)}) == 3


def save_graph(folder: Path, rank: int = 0) -> Path:
    graph = folder / f"rank_{rank}" / "graph_cache" / "compile_cache_0.mindir"
    graph.parent.mkdir(parents=True)
    graph.write_bytes(b"graph")
    return graph


def test_only_whole_graphs_are_loaded(tmp_path: Path) -> None:
    channel = JobChannel(rank=0, size=1, node=0, address=None)
    folder = tmp_path / "compile_cache" / "key"
    assert not prepare_cache(folder, channel)
    graph = save_graph(folder)  # and then the process crashed
    assert not prepare_cache(folder, channel) and not graph.exists()
    graph = save_graph(folder)
    mark_complete(folder, 0)
    assert is_complete(folder, 0) and prepare_cache(folder, channel) and graph.exists()
    # The process crashed while loading: the next one compiles.
    assert not prepare_cache(folder, channel) and not graph.exists()
    graph = save_graph(folder)
    mark_complete(folder, 0)
    graph.write_bytes(b"grap!")
    assert not prepare_cache(folder, channel)


def test_graphs_of_other_keys_are_removed(tmp_path: Path) -> None:
    channel = JobChannel(rank=0, size=1, node=0, address=None)
    old, new = (tmp_path / "compile_cache" / key for key in ("old", "new"))
    mine, others = save_graph(old), save_graph(old, rank=1)
    prepare_cache(new, channel)
    assert not mine.exists() and others.exists(), "every rank removes its own"


def test_a_rank_without_graph_makes_all_compile(tmp_path: Path) -> None:
    class Gathered(JobChannel):
        def all_gather(self, topic: str, value: Any) -> list[Any]:
            return [value, False]

    folder = tmp_path / "compile_cache" / "key"
    graph = save_graph(folder)
    mark_complete(folder, 0)
    assert not prepare_cache(folder, Gathered(rank=0, size=1, node=0, address=None)) and not graph.exists()
