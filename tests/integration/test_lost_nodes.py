"""Training that loses a node for good: with a spare node, and on fewer nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ascend_cpt.monitor.goodput.account import compute_goodput
from ascend_cpt.monitor.goodput.timeline import read_timeline
from ascend_cpt.monitor.report.write_report import write_report
from ascend_cpt.monitor.summary import summarize_run
from tests.integration.conftest import REPOSITORY, SEQ_LENGTH, make_sections, read_history
from tests.ports import find_free_port

NUM_STEPS = 40
LIMIT_S = 400


class Nodes:
    """Launchers of one worker each on this machine, which all see one output folder."""

    def __init__(self, folder: Path, config: Path, port: int, num_nodes: int, options: str) -> None:
        self._folder, self._config, self._port, self._num_nodes = folder, config, port, num_nodes
        self._options = options.split()
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, node: int) -> None:
        command = f"run_cpt.py --config {self._config}"
        form = [str(self._num_nodes), "1", "127.0.0.1", str(self._port), str(node), str(self._folder / "log")]
        environ = os.environ | {"ASCEND_CPT_PYTHON": sys.executable, "ASCEND_CPT_ALLOW_LOCAL_MASTER": "1"}
        with (self._folder / f"out_{node}").open("ab") as output:
            self.processes[node] = subprocess.Popen(
                ["bash", "scripts/msrun_launcher.sh", *self._options, command, *form, "False", "300"],
                cwd=REPOSITORY,
                env=environ,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def lose(self, node: int) -> None:
        """Kill everything on a node at once."""
        launcher = psutil.Process(self.processes[node].pid)
        for process in [launcher, *launcher.children(recursive=True)]:
            process.kill()

    def wait(self, node: int) -> int:
        return self.processes[node].wait(LIMIT_S)

    def text(self, node: int) -> str:
        return (self._folder / f"out_{node}").read_text()


def start_nodes(
    folder: Path, dataset: Path, options: str, *, num_nodes: int = 2, num_spares: int = 0, **cpt: Any
) -> Nodes:
    """Start a job in a new folder, whose run is `folder / "run"`."""
    folder.mkdir()
    batch = cpt.setdefault("global_batch_size", 8)
    settings = {
        "train_tokens": NUM_STEPS * batch * SEQ_LENGTH,
        "checkpoint": {"every": "5 steps", "keep_last": 2},
        "validation": None,
        **cpt,
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(make_sections(dataset, folder, **settings)), encoding="utf-8")
    nodes = Nodes(folder, config, find_free_port(), num_nodes, options)
    for node in range(num_nodes + num_spares):
        nodes.start(node)
    return nodes


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, packed: Path, secret_file: Path) -> list[tuple[Any, ...]]:
    """Return the steps of a run that loses no node."""
    folder = tmp_path_factory.mktemp("calm") / "job"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASCEND_CPT_SECRET_FILE", str(secret_file))
        nodes = start_nodes(folder, packed, "")
    assert [nodes.wait(node) for node in (0, 1)] == [0, 0], nodes.text(0)
    history = read_history(folder / "run")
    assert len(history) == NUM_STEPS
    return history


@pytest.fixture
def make_nodes(tmp_path: Path, packed: Path) -> Iterator[Callable[..., Nodes]]:
    made: list[Nodes] = []

    def make(options: str, **settings: Any) -> Nodes:
        made.append(start_nodes(tmp_path / "job", packed, options, **settings))
        return made[-1]

    yield make
    for nodes in made:
        for process in nodes.processes.values():
            process.send_signal(signal.SIGKILL)
            process.wait()


def wait_for_step(run: Path, step: int) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not (run / "metrics.jsonl").exists() or max((one[1] for one in read_history(run)), default=0) < step:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def read_nodes(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "nodes"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_spare_takes_over_and_the_losses_are_the_same(
    make_nodes: Callable[..., Nodes], calm: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    run = tmp_path / "job/run"
    nodes = make_nodes("--spare-nodes 1 --restart-delay 0", num_spares=1)
    wait_for_step(run, 12)
    assert "node 2 is a spare: it waits until it is needed" in nodes.text(2)
    nodes.lose(1)
    assert [nodes.wait(node) for node in (0, 2)] == [0, 0], nodes.text(0) + nodes.text(2)
    assert read_history(run) == calm
    host = os.uname().nodename
    reason = (
        f"node 1 ({host}) was lost: disconnected: its launcher was killed or the node is down; "
        f"node 2 ({host}), a spare, takes its place"
    )
    assert reason in nodes.text(0)
    assert reason in nodes.text(2)
    assert f"restart after the loss of node 1 ({host}) in 0 s" in nodes.text(0)
    first, second = read_nodes(run)
    assert (first["attempt"], first["step"], first["num_nodes"], first["reason"]) == (1, 0, 2, "")
    assert (second["attempt"], second["num_nodes"], second["reason"]) == (2, 2, reason)
    assert second["step"] >= 5
    assert json.loads((run / "run.json").read_text())["nodes"] == [host, host]
    goodput = compute_goodput(read_timeline(run / "timeline.jsonl"))
    assert goodput
    assert (goodput.num_launches, goodput.num_interruptions) == (2, 1)
    assert any(line.startswith(f"  changed nodes    step {second['step']}: node 1 (") for line in summarize_run(run))
    page = tmp_path / "report.html"
    write_report([run], page)
    assert "Changed nodes" in page.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_job_continues_on_one_node_with_the_same_batch(
    make_nodes: Callable[..., Nodes], calm: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    run = tmp_path / "job/run"
    nodes = make_nodes("--min-nodes 1 --restart-delay 0 --lost-node-timeout 12")
    wait_for_step(run, 12)
    nodes.lose(1)
    assert nodes.wait(0) == 0, nodes.text(0)
    history = read_history(run)
    assert [record[:2] for record in history] == [record[:2] for record in calm]
    differences = [abs(one[2] - other[2]) for one, other in zip(history, calm, strict=True)]
    assert max(differences) < 1e-5, differences
    first, second = read_nodes(run)
    assert (first["data_parallel"], first["micro_batch_size"]) == (2, 4)
    assert (second["num_nodes"], second["of_nodes"], second["data_parallel"], second["num_devices"]) == (1, 2, 1, 1)
    assert second["micro_batch_size"] * second["num_accumulation_steps"] * second["data_parallel"] == 8
    assert second["reason"].endswith("; the job continues on 1 of 2 nodes")
    assert "nodes    attempt 2 on 1 of 2: " in nodes.text(0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("options", "cpt", "message"),
    [
        (
            "--min-nodes 2",
            {},
            "--min-nodes 2: the run does not fit on fewer nodes; with 2 workers: ",
        ),
        ("--min-nodes 1", {"storage": {"shared": False}}, "need shared storage, because a lost node's part of the"),
        ("--spare-nodes 1", {"storage": {"shared": False}}, "need shared storage, because a lost node's part of the"),
    ],
)
def test_a_job_that_cannot_lose_a_node_is_refused_at_its_start(
    make_nodes: Callable[..., Nodes], options: str, cpt: dict[str, Any], message: str
) -> None:
    num_spares = 1 if "spare" in options else 0
    nodes = make_nodes(options, num_nodes=3, num_spares=num_spares, global_batch_size=9, **cpt)
    assert [nodes.wait(node) for node in range(3 + num_spares)] == [2] * (3 + num_spares), nodes.text(0)
    assert message in nodes.text(0)
    assert "Traceback" not in nodes.text(0)
