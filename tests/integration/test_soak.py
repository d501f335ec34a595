"""Two nodes without shared storage under kill -9: of a worker, of the scheduler, of a whole node, at random moments.

Long; run it alone: `pytest tests/integration/test_soak.py -m slow`. ASCEND_CPT_SOAK_KILLS: number of kills (30).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ascend_cpt.resume.locate import list_complete
from tests.integration.conftest import REPOSITORY, SEQ_LENGTH, read_history
from tests.integration.test_nodes import launch_nodes, seal, steps_of

NUM_STEPS = 600
TIMEOUT_S = 3600.0


class Node:
    """One node: a launcher and all that it starts, with a folder of its own."""

    def __init__(self, rank: int, folder: Path, config: Path, port: int, log: Path) -> None:
        command = f"run_cpt.py --config {config} --output_dir {folder / 'output'} --no-shared-storage"
        form = ["2", "1", "127.0.0.1", str(port), str(rank), str(folder / "log"), "False", "120"]
        self._command = ["bash", "scripts/msrun_launcher.sh", command, *form, "--max-restarts", "99"]
        self._log = log
        self.run_dir = folder / "output/run"
        self.start()

    def start(self) -> None:
        """Start, or start again, as an operator would."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                cwd=REPOSITORY,
                env={**os.environ, "ASCEND_CPT_ALLOW_LOCAL_MASTER": "1"},
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
        """Kill the launcher and everything that it has started."""
        doomed = [psutil.Process(self.process.pid), *self.list_processes()]
        for process in doomed:
            with_pid = process.pid
            try:
                os.kill(with_pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
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
def test_thirty_kills_change_nothing(
    tmp_path: Path, packed: Path, write_config: Callable[..., Path], free_ports: list[int]
) -> None:
    settings = {
        "run_name": "run",
        "train_tokens": NUM_STEPS * 8 * SEQ_LENGTH,
        "schedule": {"peak_lr": 1e-3},
        "validation": None,
        "checkpoint": {"every": "1 steps", "keep_last": 3},
    }
    folders = [tmp_path / f"node{rank}" for rank in range(2)]
    configs = []
    for folder in folders:
        shutil.copytree(packed.parent, folder / "data")
        seal(folder / "data" / packed.name)
        configs.append(write_config(sources={"train": {"path": str(folder / "data" / packed.name)}}, **settings))
    calm = [{"folder": tmp_path / f"calm{rank}", "config": configs[rank]} for rank in range(2)]
    for result in launch_nodes(calm, free_ports[0], "--no-shared-storage"):
        assert result.returncode == 0, result.stdout + result.stderr
    expected = steps_of(tmp_path / "calm0/output/run")
    assert len(expected) == NUM_STEPS

    generator = random.Random(7)
    nodes = [Node(rank, folders[rank], configs[rank], free_ports[2], tmp_path / f"log{rank}") for rank in range(2)]
    deadline = time.monotonic() + TIMEOUT_S
    num_kills, kinds, newest = 0, {"worker": 0, "scheduler": 0, "node": 0}, 0
    wanted = int(os.environ.get("ASCEND_CPT_SOAK_KILLS", "30"))
    while num_kills < wanted and all(node.process.poll() is None for node in nodes):
        assert time.monotonic() < deadline
        # Let it come two steps further, so that it gets to its end; sometimes strike during the start as well.
        if generator.random() < 0.8:
            wait_for_step(nodes, newest + 2, deadline)
        time.sleep(generator.uniform(0, 1))
        common = newest_common_step(nodes)
        assert common >= newest, "a complete checkpoint was lost"
        newest = common
        kind = generator.choice(list(kinds))
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
        num_kills, kinds[kind] = num_kills + 1, kinds[kind] + 1
    for node in nodes:
        code = node.process.wait(timeout=max(1.0, deadline - time.monotonic()))
        assert code == 0, (tmp_path / "log0").read_text()[-3000:] + (tmp_path / "log1").read_text()[-3000:]
    print(f"{num_kills} kills: {kinds}")
    assert num_kills == wanted
    for node in nodes:
        assert steps_of(node.run_dir) == expected
    assert read_history(nodes[0].run_dir)[-1] == expected[-1]


def wait_for_step(nodes: list[Node], step: int, deadline: float) -> None:
    """Return once `step` is complete on every node, or a node has ended."""
    while newest_common_step(nodes) < min(step, NUM_STEPS) and time.monotonic() < deadline:
        if any(node.process.poll() is not None for node in nodes):
            return
        time.sleep(0.2)
