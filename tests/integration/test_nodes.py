"""Nodes without shared storage: two launches with folders of their own train as one node; what differs is refused."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.data.files import checksum_file
from ascend_cpt.data.manifest import load_manifest, manifest_path, write_manifest
from tests.integration.conftest import SEQ_LENGTH, read_history, run_command

Completed = subprocess.CompletedProcess[str]
NUM_STEPS = 6


@pytest.fixture
def nodes(tmp_path: Path, packed: Path, write_config: Callable[..., Path]) -> list[dict[str, Path]]:
    """Return for each of two nodes its folder and its configuration, which names its own copy of the data."""
    made = []
    for index in range(2):
        folder = tmp_path / f"node{index}"
        shutil.copytree(packed.parent, folder / "data")
        seal(folder / "data" / packed.name)
        source = {"train": {"path": str(folder / "data" / packed.name)}}
        config = write_config(
            run_name="run",
            train_tokens=NUM_STEPS * 8 * SEQ_LENGTH,
            schedule={"peak_lr": 1e-3},
            sources=source,
            validation=None,
            checkpoint={"every": "2 steps", "keep_last": 2},
        )
        made.append({"folder": folder, "config": config})
    return made


def seal(prefix: Path) -> None:
    """Write the checksums into the manifest, which the small dataset of the tests leaves out."""
    manifest = load_manifest(prefix)
    for shard in manifest.shards:
        for name, digest in ((shard.file, "sha256"), (shard.index_file, "index_sha256")):
            object.__setattr__(shard, digest, checksum_file(manifest.folder / name))
    write_manifest(manifest, manifest_path(prefix))


def launch_nodes(
    nodes: list[dict[str, Path]], port: int, *arguments: str, outputs: list[Path] | None = None
) -> list[Completed]:
    def run(rank: int) -> Completed:
        node = nodes[rank]
        output = outputs[rank] if outputs else node["folder"] / "output"
        command = f"run_cpt.py --config {node['config']} --output_dir {output} {' '.join(arguments)}"
        form = ["2", "1", "127.0.0.1", str(port), str(rank), str(node["folder"] / "log"), "False", "120"]
        return run_command(
            ["bash", "scripts/msrun_launcher.sh", command, *form], env={"ASCEND_CPT_ALLOW_LOCAL_MASTER": "1"}
        )

    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(run, range(len(nodes))))


def assert_all(results: list[Completed], code: int, text: str = "") -> None:
    for result in results:
        assert result.returncode == code, result.stdout + result.stderr
        assert text in result.stdout + result.stderr, result.stdout + result.stderr


def steps_of(run_dir: Path) -> list[tuple[Any, ...]]:
    return [record for record in read_history(run_dir) if record[0] == "step"]


def test_two_nodes_with_disks_of_their_own(
    nodes: list[dict[str, Path]], launch: Callable[..., Completed], tmp_path: Path, free_ports: list[int]
) -> None:
    one = launch(
        nodes[0]["config"], "--output_dir", str(tmp_path / "one"), port=free_ports[0], log_dir=tmp_path / "log"
    )
    assert one.returncode == 0, one.stderr
    expected = steps_of(tmp_path / "one/run")
    assert len(expected) == NUM_STEPS

    stopped = launch_nodes(nodes, free_ports[1], "--no-shared-storage", "--stop-at-step", "5")
    assert_all(stopped, 0)
    runs = [node["folder"] / "output/run" for node in nodes]
    for run in runs:
        assert [path.name[-1] for path in sorted((run / "checkpoint").glob("iteration_*"))] == ["4", "5"]
    # Node 1 loses the newest step: both go on from the one before.
    (runs[1] / "checkpoint/iteration_00000005/cpt_state.json").unlink()
    resumed = launch_nodes(nodes, free_ports[2], "--no-shared-storage")
    assert_all(resumed, 0)
    assert "continuing at step 4" in resumed[0].stdout
    assert "step 5: not complete on node 1" in resumed[0].stdout + resumed[0].stderr
    for run in runs:
        assert steps_of(run) == expected


def test_what_does_not_fit_is_refused_on_every_node(nodes: list[dict[str, Path]], free_ports: list[int]) -> None:
    assert_all(launch_nodes(nodes, free_ports[0]), 2, "this folder is not on shared storage")
    same = [nodes[0]["folder"] / "output"] * 2
    assert_all(launch_nodes(nodes, free_ports[1], "--no-shared-storage", outputs=same), 2, "storage.shared is false")
    damaged = nodes[1]["folder"] / "data/train_text_document.mindrecord1"
    content = bytearray(damaged.read_bytes())
    content[-1000] ^= 1
    damaged.write_bytes(content)
    results = launch_nodes(nodes, free_ports[2], "--no-shared-storage")
    assert_all(results, 2, f"{damaged}: content differs from the checksum")
    assert "node 1 (" in results[0].stderr
