"""Two nodes without shared storage, with faults of eight kinds for an hour; the losses do not change.

The nodes are network namespaces with small disks of their own. Needs root; run it alone: `pytest
tests/integration/test_soak.py -m slow -s`. ASCEND_CPT_SOAK_FAULTS: number of faults (24);
ASCEND_CPT_SOAK_MINUTES: the time over which they are spread (60).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ascend_cpt.checkpoint.locate import list_complete
from ascend_cpt.monitor.goodput.account import compute_goodput
from ascend_cpt.monitor.goodput.restarts import find_restarts
from ascend_cpt.monitor.goodput.timeline import read_timeline
from tests.integration.conftest import REPOSITORY, SEQ_LENGTH, find_worker
from tests.integration.network import CAN_MAKE_NAMESPACES, address_of, connected_nodes, cut, mend, run_on
from tests.integration.test_nodes import steps_of
from tests.integration.test_slow_ranks import busy_core

NUM_STEPS = 200_000
NUM_FAULTS = int(os.environ.get("ASCEND_CPT_SOAK_FAULTS", "24"))
DURATION_S = 60 * float(os.environ.get("ASCEND_CPT_SOAK_MINUTES", "60"))
# Of one fault, on a busy machine.
TIMEOUT_S = 900.0
DISK_BYTES = 400 << 20

EXPECTED = {
    "worker": r"node {node} .*worker {node} was killed by SIGKILL",
    "scheduler": r"node 0 .*the scheduler was killed by SIGKILL",
    "node": r"node 1 .*disconnected: its launcher was killed|lost the connection to node 0: its launcher was killed",
    # MindSpore's scheduler gives up a worker that does not answer for 30 s.
    "stopped": r"node {node} .*worker {node} is stopped \(SIGSTOP\)|hang: no step for .*likely cause: worker {node};",
    "partition": r"node 1 .*sent no heartbeat|hang: no step for|lost the connection to node 0",
    "disk": r"the disk is full",
    "rot": r"worker {node} was killed by SIGKILL.*; skipped a checkpoint: .*does not match the checksum",
}
"""Kind → what the list of restarts states about it. A slowed rank does not interrupt the run."""
KINDS = (*EXPECTED, "slowed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3 * DURATION_S + 3600),
    pytest.mark.skipif(
        not (CAN_MAKE_NAMESPACES and shutil.which("mount")), reason="network namespaces and mounts need root and ip(8)"
    ),
]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault that was caused on purpose after `step`."""

    kind: str
    node: int
    step: int


class Node:
    """One node: a launcher and its child processes, with its own network and disk."""

    def __init__(self, rank: int, folder: Path, config: Path, port: int) -> None:
        self.rank, self.disk = rank, folder / "disk"
        command = f"run_cpt.py --config {config} --output_dir {self.disk} --no-shared-storage"
        form = ["2", "1", address_of(0), str(port), str(rank), str(folder / "log"), "False", "300"]
        options = ["--max-restarts", "999", "--restart-delay", "1", "--hang-timeout", "60", "--rejoin-timeout", "600"]
        self._command = [*run_on(rank), "bash", "scripts/msrun_launcher.sh", command, *form, *options]
        self.log = folder / "launcher.log"
        self.run_dir = self.disk / "run"
        self.start()

    def start(self) -> None:
        """Start, or start again, as an operator would."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                cwd=REPOSITORY,
                env={**os.environ, "ASCEND_CPT_PYTHON": sys.executable, "ASCEND_CPT_INSECURE": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def find(self, role: str) -> psutil.Process | None:
        """Return the node's process with this role of msrun, or None if there is none (yet)."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.environ().get("MS_ROLE") == role:
                    return process
        return None

    def kill(self) -> None:
        """Kill the launcher and all its child processes."""
        doomed = []
        with contextlib.suppress(psutil.NoSuchProcess):
            doomed = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


@contextlib.contextmanager
def disks(folders: list[Path]) -> Iterator[None]:
    """Give each node a small file system."""
    mounted = []
    try:
        for folder in folders:
            (folder / "disk").mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder / "disk")]
            if subprocess.run(command, check=False, capture_output=True).returncode:
                pytest.skip("this machine does not allow mounts")
            mounted.append(folder / "disk")
        yield
    finally:
        for disk in mounted:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)


class Soak:
    """A running job and the faults that it has had."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes, self.faults = nodes, list[Fault]()
        self._random = random.Random(7)

    def run(self, num_faults: int, duration_s: float) -> None:
        """Cause the faults: each kind in turn in a random order, at random times."""
        start_s = time.monotonic()
        kinds: list[str] = []
        for index in range(num_faults):
            kinds = kinds or self._random.sample(KINDS, len(KINDS))
            self._wait_for_progress(num_checkpoints=self._random.choice([2, 3, 5]))
            time.sleep(max(0.0, start_s + duration_s * index / num_faults - time.monotonic()))
            time.sleep(self._random.uniform(0, 3))
            self._cause(kinds.pop())
        self._wait_for_progress(num_checkpoints=2)

    def stop(self) -> int:
        """Stop the job as an operator would; return the last step."""
        self.nodes[0].process.send_signal(signal.SIGTERM)
        for node in self.nodes:
            assert node.process.wait(timeout=TIMEOUT_S) == 143, node.log.read_text()[-5000:]
        return self.newest_step()

    def newest_step(self) -> int:
        """Return the newest step whose checkpoint is complete on every node; 0 without one."""
        complete = [set(list_complete(node.run_dir / "checkpoint")[0]) for node in self.nodes]
        return max(set.intersection(*complete), default=0)

    def _wait_for_progress(self, num_checkpoints: int) -> None:
        """Wait for new checkpoints that are complete on all nodes."""
        deadline, newest = time.monotonic() + TIMEOUT_S, self.newest_step()
        while num_checkpoints:
            assert all(node.process.poll() is None for node in self.nodes), self._describe()
            assert time.monotonic() < deadline, self._describe()
            time.sleep(0.2)
            now = self.newest_step()
            assert now >= newest, f"step {newest} was complete, now {now} is the newest"
            num_checkpoints -= now > newest
            newest = now

    def _describe(self) -> str:
        return "\n".join([str(self.faults[-1:]), *(node.log.read_text()[-3000:] for node in self.nodes)])

    def _cause(self, kind: str) -> None:
        node = self._random.choice(self.nodes)
        if kind == "scheduler":
            node = self.nodes[0]
        self.faults.append(Fault(kind=kind, node=node.rank, step=self.newest_step()))
        print(f"{time.strftime('%H:%M:%S')} {self.faults[-1]}", flush=True)
        getattr(self, f"_cause_{kind}")(node)

    def _send(self, node: Node, number: int, role: str = "MS_WORKER") -> None:
        process = node.find(role)
        assert process is not None, self._describe()
        process.send_signal(number)

    def _cause_worker(self, node: Node) -> None:
        self._send(node, signal.SIGKILL)

    def _cause_scheduler(self, node: Node) -> None:
        self._send(node, signal.SIGKILL, "MS_SCHED")

    def _cause_node(self, node: Node) -> None:
        node.kill()
        time.sleep(self._random.uniform(0, 5))
        node.start()

    def _cause_stopped(self, node: Node) -> None:
        self._send(node, signal.SIGSTOP)

    def _cause_partition(self, node: Node) -> None:
        cut(node.rank)
        time.sleep(90)
        mend(node.rank)

    def _cause_disk(self, node: Node) -> None:
        filler = node.disk / "filler"
        filler.write_bytes(bytes(max(0, shutil.disk_usage(node.disk).free - 100_000)))
        for each in self.nodes:
            assert each.process.wait(timeout=TIMEOUT_S) == 2, self._describe()
        filler.unlink()
        for each in self.nodes:
            each.start()

    def _cause_rot(self, node: Node) -> None:
        """Change a byte of the newest checkpoint, and make the job read it."""
        self._send(node, signal.SIGSTOP)
        step = max(list_complete(node.run_dir / "checkpoint")[0])
        newest = node.run_dir / f"checkpoint/iteration_{step:08d}"
        path = max(newest.glob("*.safetensors"), key=lambda file: file.stat().st_size)
        with path.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            value = file.read(1)
            file.seek(-100, os.SEEK_END)
            file.write(bytes([value[0] ^ 0x40]))
        self._send(node, signal.SIGKILL)
        # The damaged checkpoint, whose size is right, counts as complete until the step is saved again.
        deadline = time.monotonic() + TIMEOUT_S
        while self.newest_step() <= step:
            assert time.monotonic() < deadline, self._describe()
            time.sleep(0.5)

    def _cause_slowed(self, node: Node) -> None:
        worker = find_worker(psutil.Process(node.process.pid), node.rank)
        assert worker is not None
        deadline = time.monotonic() + 600
        with busy_core(worker):
            while not self.has_slow_record(self.faults[-1]) and time.monotonic() < deadline:
                time.sleep(1)

    def has_slow_record(self, fault: Fault) -> bool:
        """Return whether a record after the fault names the rank."""
        lines = (self.nodes[0].run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if '"ranks"' in line]
        return any(
            one["rank"] == fault.node for record in records if record["step"] > fault.step for one in record["slow"]
        )


def launch_undisturbed(folders: list[Path], configs: list[Path], port: int, stop_at: int) -> None:
    """Train up to a step without faults."""
    processes = []
    for rank, (folder, config) in enumerate(zip(folders, configs, strict=True)):
        command = f"run_cpt.py --config {config} --output_dir {folder / 'calm'} --no-shared-storage"
        command += f" --stop-at-step {stop_at} --set cpt.checkpoint.every='{NUM_STEPS} steps'"
        form = ["2", "1", "127.0.0.1", str(port), str(rank), str(folder / "calm_log"), "False", "300", "--insecure"]
        environment = {**os.environ, "ASCEND_CPT_PYTHON": sys.executable, "ASCEND_CPT_ALLOW_LOCAL_MASTER": "1"}
        words = ["bash", "scripts/msrun_launcher.sh", command, *form]
        processes.append(subprocess.Popen(words, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL))
    for process in processes:
        assert process.wait(timeout=3600) == 0


def check_names(soak: Soak, run_dir: Path) -> None:
    """Check that the list of restarts names each fault, in order."""
    found = [restart.describe() for restart in find_restarts(read_timeline(run_dir / "timeline.jsonl"))]
    print("\n".join(found))
    rest = iter(found)
    for fault in soak.faults:
        if fault.kind != "slowed":
            pattern = EXPECTED[fault.kind].format(node=fault.node)
            assert any(re.search(pattern, text) for text in rest), f"{fault} is not named:\n" + "\n".join(found)


@pytest.mark.parametrize("background", [True, False])
def test_faults_do_not_change_the_losses(
    tmp_path: Path, packed: Path, write_config: Callable[..., Path], free_ports: list[int], background: bool
) -> None:
    settings = {
        "run_name": "run",
        "train_tokens": NUM_STEPS * 8 * SEQ_LENGTH,
        "schedule": {"peak_lr": 1e-3},
        "validation": None,
        "checkpoint": {"every": "20 steps", "keep_last": 3, "background": background},
        "monitor": {"print_every_steps": 100, "slow_rank_excess": 0.3},
        # Most of the time is spent on restarts.
        "compile_cache": True,
    }
    folders = [tmp_path / f"node{rank}" for rank in range(2)]
    configs = []
    for folder in folders:
        shutil.copytree(packed.parent, folder / "data")
        configs.append(write_config(sources={"train": {"path": str(folder / "data" / packed.name)}}, **settings))
    with connected_nodes(2), disks(folders):
        start_s = time.time()
        nodes = [Node(rank, folders[rank], configs[rank], free_ports[2]) for rank in range(2)]
        soak = Soak(nodes)
        try:
            soak.run(NUM_FAULTS, DURATION_S)
            last = soak.stop()
        finally:
            for node in nodes:
                node.kill()
        wall_s = time.time() - start_s
        print(f"{len(soak.faults)} faults in {wall_s:.0f} s: {dict(Counter(fault.kind for fault in soak.faults))}")
        check_names(soak, nodes[0].run_dir)
        assert all(soak.has_slow_record(fault) for fault in soak.faults if fault.kind == "slowed")
        goodput = compute_goodput(read_timeline(nodes[0].run_dir / "timeline.jsonl"))
        assert goodput is not None
        print(f"{goodput.describe()}; interruptions: {goodput.describe_interruptions()}")
        assert sum(goodput.seconds.values()) == pytest.approx(goodput.wall_s)
        assert goodput.wall_s == pytest.approx(wall_s, rel=0.01, abs=20)
        launch_undisturbed(folders, configs, free_ports[3], last)
        expected = steps_of(folders[0] / "calm/run")
        assert len(expected) == last
        for node in nodes:
            assert steps_of(node.run_dir) == expected
