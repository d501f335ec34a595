"""Nodes without shared storage: two launches with separate folders train as one node does; differences are refused."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.checkpoint.locate import list_complete
from tests.integration.conftest import SEQ_LENGTH, read_history, run_command
from tests.integration.network import CAN_MAKE_NAMESPACES, address_of, connected_nodes, run_on

Completed = subprocess.CompletedProcess[str]
Node = dict[str, Path]
NUM_STEPS = 6


@pytest.fixture
def make_nodes(tmp_path: Path, packed: Path, write_config: Callable[..., Path]) -> Callable[[int], list[Node]]:
    """Return a function that makes a folder, a copy of the data and a configuration for each node."""

    def make(num_nodes: int) -> list[Node]:
        made = []
        for index in range(num_nodes):
            folder = tmp_path / f"node{index}"
            shutil.copytree(packed.parent, folder / "data")
            config = write_config(
                run_name="run",
                train_tokens=NUM_STEPS * 8 * SEQ_LENGTH,
                schedule={"peak_lr": 1e-3},
                sources={"train": {"path": str(folder / "data" / packed.name)}},
                validation=None,
                checkpoint={"every": "2 steps", "keep_last": 2},
            )
            made.append({"folder": folder, "config": config})
        return made

    return make


@pytest.fixture
def nodes(make_nodes: Callable[[int], list[Node]]) -> list[Node]:
    return make_nodes(2)


def launch_nodes(
    nodes: list[Node],
    port: int,
    *arguments: str,
    outputs: list[Path] | None = None,
    namespaces: bool = False,
) -> list[Completed]:
    """Launch one worker on each node; with `namespaces`, in those of `connected_nodes`."""

    def run(rank: int) -> Completed:
        node = nodes[rank]
        output = outputs[rank] if outputs else node["folder"] / "output"
        command = f"run_cpt.py --config {node['config']} --output_dir {output} {' '.join(arguments)}"
        address = address_of(0) if namespaces else "127.0.0.1"
        form = [str(len(nodes)), "1", address, str(port), str(rank), str(node["folder"] / "log"), "False", "300"]
        return run_command(
            [*(run_on(rank) if namespaces else ()), "bash", "scripts/msrun_launcher.sh", command, *form],
            env={} if namespaces else {"ASCEND_CPT_ALLOW_LOCAL_MASTER": "1"},
            timeout_s=500,
        )

    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(run, range(len(nodes))))


def assert_all(results: list[Completed], code: int, text: str = "") -> None:
    for result in results:
        assert result.returncode == code, result.stdout + result.stderr
        assert text in result.stdout + result.stderr, result.stdout + result.stderr


def steps_of(run_dir: Path) -> list[tuple[Any, ...]]:
    return [record for record in read_history(run_dir) if record[0] == "step"]


@pytest.mark.timeout(600)
def test_two_nodes_without_shared_storage(
    nodes: list[Node], launch: Callable[..., Completed], tmp_path: Path, free_ports: list[int]
) -> None:
    one = launch(
        nodes[0]["config"], "--output_dir", str(tmp_path / "one"), port=free_ports[0], log_dir=tmp_path / "log"
    )
    assert one.returncode == 0, one.stderr
    expected = steps_of(tmp_path / "one/run")
    assert len(expected) == NUM_STEPS

    runs = [node["folder"] / "output/run" for node in nodes]
    newest = "checkpoint/iteration_0000000"
    assert_all(launch_nodes(nodes, free_ports[1], "--no-shared-storage", "--stop-at-step", "3"), 0)
    # A file of node 1's newest step is truncated: both nodes resume from the previous step and print the reason.
    model = next((runs[1] / f"{newest}3").glob("cpt-model-*"))
    cut_short = model.read_bytes()[:1000]
    model.unlink()
    model.write_bytes(cut_short)
    resumed = launch_nodes(nodes, free_ports[2], "--no-shared-storage", "--stop-at-step", "5")
    assert_all(resumed, 0)
    assert "continuing at step 2" in resumed[0].stdout
    assert f"): {model}: has 1000 bytes but was saved with" in resumed[0].stdout + resumed[0].stderr
    for run in runs:
        assert [path.name[-1] for path in sorted((run / "checkpoint").glob("iteration_*"))] == ["4", "5"]
    # Node 1 does not have the newest step.
    shutil.rmtree(runs[1] / f"{newest}5")
    resumed = launch_nodes(nodes, free_ports[3], "--no-shared-storage")
    assert_all(resumed, 0)
    assert "continuing at step 4" in resumed[0].stdout
    assert "step 5: not complete on node 1" in resumed[0].stdout + resumed[0].stderr
    for run in runs:
        assert steps_of(run) == expected


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_four_nodes_with_separate_networks_and_disks(
    make_nodes: Callable[[int], list[Node]], launch: Callable[..., Completed], tmp_path: Path, free_ports: list[int]
) -> None:
    nodes = make_nodes(4)
    one = launch(
        nodes[0]["config"],
        "--output_dir",
        str(tmp_path / "one"),
        port=free_ports[0],
        workers=4,
        log_dir=tmp_path / "log",
    )
    assert one.returncode == 0, one.stderr
    expected = steps_of(tmp_path / "one/run")
    assert len(expected) == NUM_STEPS
    with connected_nodes(4) if CAN_MAKE_NAMESPACES else nullcontext():
        results = launch_nodes(nodes, free_ports[1], "--no-shared-storage", namespaces=CAN_MAKE_NAMESPACES)
    assert_all(results, 0)
    for node in nodes:
        assert steps_of(node["folder"] / "output/run") == expected
        assert list(list_complete(node["folder"] / "output/run/checkpoint")[0]) == [6, 4]


def test_mismatches_are_refused_on_every_node(nodes: list[Node], free_ports: list[int]) -> None:
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
