"""Two nodes without shared storage; kill -9 of a worker, the scheduler or a whole node at random times.

Long; run it alone: `pytest tests/integration/test_soak.py -m slow`. ASCEND_CPT_SOAK_KILLS: number of kills (30).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ascend_cpt.checkpoint.locate import list_complete
from tests.integration.conftest import REPOSITORY, SEQ_LENGTH
from tests.integration.test_nodes import launch_nodes, steps_of

NUM_STEPS = 400
NUM_KILLS = int(os.environ.get("ASCEND_CPT_SOAK_KILLS", "30"))
TIMEOUT_S = 3600.0


class Node:
    """One node: a launcher and its child processes, with its own folder."""

    def __init__(self, rank: int, folder: Path, config: Path, port: int, log: Path) -> None:
        command = f"run_cpt.py --config {config} --output_dir {folder / 'output'} --no-shared-storage"
        form = ["2", "1", "127.0.0.1", str(port), str(rank), str(folder / "log"), "False", "120"]
        options = ["--max-restarts", "99", "--restart-delay", "1"]
        self._command = ["bash", "scripts/msrun_launcher.sh", command, *form, *options]
        self._log = log
        self.run_dir = folder / "output/run"
        self.start()

    def start(self) -> None:
        """Start, or start again, as an operator would."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                cwd=REPOSITORY,
                env={**os.environ, "ASCEND_CPT_PYTHON": sys.executable, "ASCEND_CPT_ALLOW_LOCAL_MASTER": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def list_processes(self, *, role: str | None = None) -> list[psutil.Process]:
        """Return the processes below the launcher, or those that msrun gave this role."""
        try:
            processes = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [process for process in processes if role is None or _read_role(process) == role]

    def kill(self) -> None:
        """Kill the launcher and all its child processes."""
        doomed = self.list_processes()
        self.process.kill()
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def _read_role(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("MS_ROLE")
    except psutil.Error:
        return None


def newest_common_step(nodes: list[Node]) -> int:
    """Return the newest step whose checkpoint is complete on every node; 0 without one."""
    complete = [set(list_complete(node.run_dir / "checkpoint")[0]) for node in nodes]
    return max(set.intersection(*complete), default=0)


@pytest.mark.slow
@pytest.mark.timeout(4000)
@pytest.mark.parametrize(("background", "num_kills"), [(False, NUM_KILLS), (True, NUM_KILLS // 3)])
def test_kills_do_not_change_the_losses(
    tmp_path: Path,
    packed: Path,
    write_config: Callable[..., Path],
    free_ports: list[int],
    background: bool,
    num_kills: int,
) -> None:
    settings = {
        "run_name": "run",
        "train_tokens": NUM_STEPS * 8 * SEQ_LENGTH,
        "schedule": {"peak_lr": 1e-3},
        "validation": None,
        "checkpoint": {"every": "1 steps", "keep_last": 3, "background": background},
    }
    folders = [tmp_path / f"node{rank}" for rank in range(2)]
    configs = []
    for folder in folders:
        shutil.copytree(packed.parent, folder / "data")
        configs.append(write_config(sources={"train": {"path": str(folder / "data" / packed.name)}}, **settings))
    undisturbed = [{"folder": tmp_path / f"undisturbed{rank}", "config": configs[rank]} for rank in range(2)]
    for result in launch_nodes(undisturbed, free_ports[0], "--no-shared-storage"):
        assert result.returncode == 0, result.stdout + result.stderr
    expected = steps_of(tmp_path / "undisturbed0/output/run")
    assert len(expected) == NUM_STEPS

    nodes = [Node(rank, folders[rank], configs[rank], free_ports[2], tmp_path / f"log{rank}") for rank in range(2)]
    try:
        kills = kill_at_random(nodes, num_kills)
        for node in nodes:
            code = node.process.wait(timeout=TIMEOUT_S)
            assert code == 0, "".join((tmp_path / f"log{rank}").read_text()[-3000:] for rank in range(2))
    finally:
        for node in nodes:
            node.kill()
    print(f"{sum(kills.values())} kills: {kills}")
    for node in nodes:
        assert steps_of(node.run_dir) == expected


def kill_at_random(nodes: list[Node], num_kills: int) -> Counter[str]:
    """Kill parts of the job at random times; return the number of kills of each kind."""
    generator = random.Random(7)
    kills: Counter[str] = Counter()
    newest = 0
    deadline = time.monotonic() + TIMEOUT_S
    while kills.total() < num_kills:
        assert time.monotonic() < deadline
        assert all(node.process.poll() is None for node in nodes), f"the job ended after {kills}"
        # Let it advance two steps, so that it finishes; sometimes kill during startup as well.
        if generator.random() < 0.8:
            wait_for_step(nodes, newest + 2, deadline)
        time.sleep(generator.uniform(0, 1))
        common = newest_common_step(nodes)
        assert common >= newest, f"step {newest} was complete, now {common} is the newest"
        newest = common
        kind = generator.choice(["worker", "scheduler", "node"])
        node = nodes[0] if kind == "scheduler" else generator.choice(nodes)
        if kind == "node":
            node.kill()
            time.sleep(generator.uniform(0, 2))
            node.start()
        else:
            targets = node.list_processes(role="MS_SCHED" if kind == "scheduler" else "MS_WORKER")
            if not targets:
                continue
            os.kill(targets[0].pid, signal.SIGKILL)
        kills[kind] += 1
    return kills


def wait_for_step(nodes: list[Node], step: int, deadline: float) -> None:
    """Return once `step` is complete on every node, or a node has ended."""
    while newest_common_step(nodes) < min(step, NUM_STEPS) and time.monotonic() < deadline:
        if any(node.process.poll() is not None for node in nodes):
            return
        time.sleep(0.2)
