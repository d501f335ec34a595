"""Jobs that crash, with real processes under the real msrun.

The actor stands in for training: it counts steps, saves every fifth and resumes from there. All nodes share its folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = REPO_ROOT / "scripts" / "msrun_launcher.sh"
TIMEOUT_S = 100

ACTOR = """\
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, os.environ["ACTOR_ROOT"])
from ascend_cpt.cluster.job.launcher_files import report_own_stop, report_stacks_on_request, report_step
folder, total = Path(sys.argv[1]), int(sys.argv[2])
if os.environ.get("MS_ROLE") == "MS_SCHED":
    (folder / f"pid_scheduler").write_text(str(os.getpid()))
    while len(list(folder.glob("done_*"))) < int(os.environ["MS_WORKER_NUM"]):
        time.sleep(0.05)
        if (folder / "scheduler_gives_up").exists() and (folder / "has_hung").exists():
            (folder / "scheduler_gives_up").unlink()
            time.sleep(2)
            raise RuntimeError("Timed out node list is: [const vector]{1}")
    sys.exit(0)
rank = int(os.environ["RANK_ID"])
report_stacks_on_request(rank)

def wait_in_a_loop():
    while True:
        pass

def barrier():
    time.sleep(1000)

stops = []
if (folder / "saves_when_stopped").exists():
    signal.signal(signal.SIGTERM, lambda number, frame: stops.append(number))
checkpoint = folder / "checkpoint"
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
with (folder / "starts").open("a") as starts:
    starts.write(f"{rank} from {step}\\n")
(folder / f"pid_{rank}").write_text(str(os.getpid()))
with (folder / f"causes_{rank}").open("a") as causes:
    causes.write(os.environ["ASCEND_CPT_INTERRUPTION_CAUSE"] + "\\n")
while step < total:
    step += 1
    time.sleep(0.1)
    if (folder / f"mistake_{rank}_{step}").exists():
        print("error: x.yaml:3: unknown key", file=sys.stderr)
        sys.exit(2)
    if (folder / f"stop_{rank}_{step}").exists():
        report_own_stop()
        print("error: the loss is not finite", file=sys.stderr)
        sys.exit(1)
    if (folder / f"bang_{rank}_{step}").exists():
        raise RuntimeError(f"bang at {step}")
    # In the first attempt only.
    if (hanging := list(folder.glob(f"hang_*_{step}"))) and not os.environ["ASCEND_CPT_INTERRUPTION_CAUSE"]:
        (folder / "has_hung").touch()
        if int(hanging[0].name.split("_")[1]) == rank:
            how = hanging[0].read_text()
            if how.startswith("/"):  # a file on a disk that does not answer
                Path(how).write_text("x")
            wait_in_a_loop() if "loop" in how else os.kill(os.getpid(), signal.SIGSTOP)
        else:
            barrier()
    report_step(step)
    if rank == 0 and (step % 5 == 0 or stops):
        checkpoint.with_suffix(".tmp").write_text(str(step))
        checkpoint.with_suffix(".tmp").replace(checkpoint)
    if stops:
        print(f"saved step {step}", flush=True)
        sys.exit(143)
(folder / f"done_{rank}").touch()
print(f"done {rank}", flush=True)
"""

pytestmark = pytest.mark.skipif(
    not (Path(sys.executable).parent / "msrun").exists(), reason="MindSpore is not installed beside this Python"
)


@dataclass
class Job:
    """A job of one or two nodes on this machine, each with its own folder."""

    folder: Path
    environ: dict[str, str]
    port: int
    nodes: dict[int, subprocess.Popen[bytes]]
    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()
    limit_s: float = TIMEOUT_S

    def start(self, node: int = 0, *, num_nodes: int = 2, total: int = 30, options: str = "--max-restarts 3") -> None:
        home = self.folder / f"node{node}"
        home.mkdir(exist_ok=True)
        (home / "actor.py").write_text(ACTOR)
        form = ["2", "1", self.address, str(self.port), str(node)] if num_nodes == 2 else ["2"]
        command = [*self.prefix, "bash", str(LAUNCHER), *options.split(), f"actor.py '{self.folder}' {total}", *form]
        with (home / "out.txt").open("ab") as output:
            self.nodes[node] = subprocess.Popen(
                command, cwd=home, env=self.environ, stdout=output, stderr=subprocess.STDOUT
            )

    def wait(self, node: int = 0) -> int:
        return self.nodes[node].wait(self.limit_s)

    def text(self, node: int = 0) -> str:
        return (self.folder / f"node{node}" / "out.txt").read_text()

    def starts(self) -> list[str]:
        return sorted((self.folder / "starts").read_text().splitlines())

    def causes(self, rank: int) -> list[str]:
        return (self.folder / f"causes_{rank}").read_text().splitlines()

    def kill(self, name: str) -> None:
        os.kill(int((self.folder / f"pid_{name}").read_text()), signal.SIGKILL)

    def wait_for_step(self, step: int) -> None:
        wait_for(lambda: self.checkpoint() >= step)

    def checkpoint(self) -> int:
        path = self.folder / "checkpoint"
        return int(path.read_text()) if path.exists() else 0


def wait_for(condition: Callable[[], object], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def job(tmp_path: Path, clean_environ: dict[str, str], free_port: int) -> Iterator[Job]:
    environ = clean_environ | {
        "ASCEND_CPT_PYTHON": sys.executable,
        "MASTER_PORT": str(free_port),
        "ASCEND_CPT_ALLOW_LOCAL_MASTER": "1",
        "ASCEND_CPT_RESTART_DELAY_S": "0",
        "ACTOR_ROOT": str(REPO_ROOT),
    }
    made = Job(tmp_path, environ, free_port, {})
    yield made
    for process in made.nodes.values():
        process.kill()
        process.wait()
    # No process is left running.
    wait_for(lambda: not find_processes(tmp_path), limit_s=10)


def find_processes(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_killed_worker_is_restarted(job: Job) -> None:
    job.start(num_nodes=1)
    job.wait_for_step(10)
    job.kill("1")
    assert job.wait() == 0, job.text()
    assert "worker 1 was killed by SIGKILL" in job.text()
    assert "restart 1 of 3 in 0 s (last finished step: 1" in job.text()
    assert len(job.starts()) == 4
    assert "0 from 10" in job.starts() or "0 from 15" in job.starts()
    first, second = job.causes(0)
    assert first == "" and second.startswith("worker 1 was killed by SIGKILL"), (first, second)
    logs = job.folder / "node0/output/msrun_log"
    assert "done 0" in (logs / "worker_0.log").read_text()
    assert (logs / "earlier_1/worker_1.log").exists()


def test_the_same_step_failing_again_ends_the_job(job: Job) -> None:
    # Real ranks run in lockstep.
    (job.folder / "bang_1_7").touch()
    (job.folder / "bang_0_7").touch()
    job.start(num_nodes=1)
    assert job.wait() == 1
    assert job.text().count("RuntimeError: bang at 7") >= 2
    assert "no restart: the job failed after step 6 twice in a row" in job.text()
    assert len(job.starts()) == 4


@pytest.mark.parametrize(("what", "code"), [("mistake", 2), ("stop", 1)])
def test_user_errors_and_deliberate_stops_are_not_restarted(job: Job, what: str, code: int) -> None:
    (job.folder / f"{what}_1_3").touch()
    job.start(num_nodes=1)
    assert job.wait() == code
    assert "restart" not in job.text()
    assert len(job.starts()) == 2


@pytest.mark.parametrize("victim", ["0", "1", "scheduler"])
def test_both_nodes_restart_and_print_the_cause(job: Job, victim: str) -> None:
    for node in (1, 0):
        # The actors do not use the scheduler, and the launcher first waits for the workers to fail.
        job.start(node, total=100 if victim == "scheduler" else 30)
    job.wait_for_step(5)
    job.kill(victim)
    assert [job.wait(0), job.wait(1)] == [0, 0], job.text(0) + job.text(1)
    cause = "the scheduler was killed" if victim == "scheduler" else f"worker {victim} was killed by SIGKILL"
    for node in (0, 1):
        assert cause in job.text(node)
        assert "restart 1 of 3" in job.text(node)
    other = 0 if victim == "1" else 1
    assert f"node {1 - other} (" in job.text(other)
    assert len(job.starts()) == 4


@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_node_waits_for_a_killed_node(job: Job, victim: int) -> None:
    other = 1 - victim
    for node in (0, 1):
        job.start(node)
    job.wait_for_step(5)
    job.nodes[victim].kill()
    wait_for(lambda: "restart 1 of 3" in job.text(other))
    lost = f"node {victim} (" if victim else "lost the connection to node 0"
    assert lost in job.text(other)
    job.start(victim)
    assert [job.wait(0), job.wait(1)] == [0, 0], job.text(0) + job.text(1)
    assert len(job.starts()) == 4


def test_a_node_that_does_not_return_ends_the_job(job: Job) -> None:
    for node in (0, 1):
        job.start(node, options="--max-restarts 3 --rejoin-timeout 2")
    job.wait_for_step(5)
    job.nodes[1].kill()
    assert job.wait(0) == 1
    assert ") did not rejoin within 2 s; start the job again to resume" in job.text(0)


def test_without_restarts_one_failure_ends_all_nodes_at_once(job: Job) -> None:
    (job.folder / "bang_1_3").touch()
    for node in (0, 1):
        job.start(node, total=10000, options="")
    assert [job.wait(0), job.wait(1)] == [1, 1]
    assert "RuntimeError: bang at 3" in job.text(0)
    assert ": worker 1 failed with exit code 1; its log: output/msrun_log/node_1/worker_1.log" in job.text(0)


def test_a_stop_of_one_node_lets_all_save(job: Job) -> None:
    (job.folder / "saves_when_stopped").touch()
    for node in (0, 1):
        job.start(node, total=10000)
    job.wait_for_step(5)
    wait_for((job.folder / "causes_1").exists)
    job.nodes[1].send_signal(signal.SIGTERM)
    assert [job.wait(0), job.wait(1)] == [143, 143], job.text(0) + job.text(1)
    assert "saved step" in job.text(0)
    assert "saved step" in job.text(1)
    assert "SIGTERM on node 1 (" in job.text(0)
    assert len(job.starts()) == 2


def test_a_stop_between_attempts_ends_the_job(job: Job) -> None:
    (job.folder / "bang_1_3").touch()
    job.start(num_nodes=1, options="--max-restarts 3 --restart-delay 60")
    wait_for(lambda: "restart 1 of 3 in 60 s" in job.text())
    job.nodes[0].terminate()
    assert job.wait() == 143
    assert "SIGTERM: no restart" in job.text()


def test_a_worker_in_an_endless_loop_is_named_and_the_job_restarted(job: Job) -> None:
    (job.folder / "hang_1_7").write_text("loop")
    job.start(num_nodes=1, options="--max-restarts 1 --hang-timeout 8")
    assert job.wait() == 0, job.text()
    assert "worker 0 waits for the others in barrier (node0/actor.py:" in job.text()
    assert "worker 1 is in wait_in_a_loop (node0/actor.py:" in job.text()
    assert "after step 6 (limit 8 s); likely cause: worker 1; stacks in output/msrun_log/stacks_*.txt" in job.text()
    assert "restart 1 of 1" in job.text()
    assert len(job.starts()) == 4


def test_a_stopped_worker_of_another_node_is_named_on_both(job: Job) -> None:
    (job.folder / "hang_1_7").write_text("stop")
    for node in (1, 0):
        job.start(node, options="--max-restarts 1 --hang-timeout 8")
    assert [job.wait(0), job.wait(1)] == [0, 0], job.text(0) + job.text(1)
    for node in (0, 1):
        assert "worker 1 is stopped (SIGSTOP)" in job.text(node), job.text(node)
        assert "likely cause: worker 1; stacks in output/msrun_log/node_1/stacks_*.txt" in job.text(node)
        assert "likely cause: none" not in job.text(node)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_worker_is_the_cause_if_the_scheduler_gives_it_up(job: Job, rank: int) -> None:
    (job.folder / f"hang_{rank}_7").write_text("stop")
    (job.folder / "scheduler_gives_up").touch()
    for node in (1, 0):
        job.start(node, options="--max-restarts 1")
    assert [job.wait(0), job.wait(1)] == [0, 0], job.text(0) + job.text(1)
    assert f"worker {rank} is stopped (SIGSTOP), so the others could not continue" in job.text(rank)
    for worker in (0, 1):
        first, cause = job.causes(worker)
        assert first == "" and f"node {rank} (" in cause and f": worker {rank} is stopped (SIGSTOP)" in cause, cause


def test_the_next_launch_gets_the_cause(job: Job) -> None:
    job.start(num_nodes=1, options="--max-restarts 0")
    job.wait_for_step(5)
    job.kill("1")
    assert job.wait() == 1, job.text()
    for _ in range(2):
        job.start(num_nodes=1)
        assert job.wait() == 0, job.text()
    first, second, third = job.causes(1)
    assert first == third == "" and second.startswith("worker 1 was killed by SIGKILL"), job.causes(1)
