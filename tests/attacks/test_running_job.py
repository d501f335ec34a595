"""Hostile peers against two real launchers and their workers: the job ends as it does undisturbed."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.cluster.messages.secret import LAUNCHERS, derive_key, read_secret_file
from ascend_cpt.cluster.messages.server import HANDSHAKE_S
from tests.attacks.insiders import INSIDERS
from tests.attacks.outsiders import OUTSIDERS
from tests.attacks.target import Target
from tests.integration.conftest import (  # noqa: F401
    SEQ_LENGTH,
    packed,
    read_history,
    run_command,
    tokenizer,
    write_config,
)
from tests.integration.test_restarts import Job, find_processes, wait_for
from tests.ports import find_free_port

pytestmark = pytest.mark.skipif(
    not (Path(sys.executable).parent / "msrun").exists(), reason="MindSpore is not installed beside this Python"
)
# Enough for the attacks to end first; the time of an attack and of a step both depend on the load.
NUM_STEPS = 400
# These wait for the time limit of a handshake.
PATIENT = {"sends nothing", "sends one byte at a time and never finishes", "sends all but the last byte of an answer"}
PATIENT |= {"never reads"}


def make_target(port: int, secret_file: Path) -> Target:
    key = derive_key(read_secret_file(secret_file), LAUNCHERS)
    return Target(
        address=("127.0.0.1", port + 2), key=key, purpose=LAUNCHERS, spare=99, handshake_s=HANDSHAKE_S, size=(2, 2, 0)
    )


def replay(target: Target, names: set[str]) -> dict[str, tuple[str, str]]:
    """Run attacks, those of outsiders that wait at the same time, and return {name: (outcome, expected)}."""
    attacks = {**OUTSIDERS, **INSIDERS}
    with ThreadPoolExecutor(len(PATIENT)) as pool:
        waiting = {name: pool.submit(attacks[name][0], target) for name in sorted(names & PATIENT)}
        outcomes = {name: attacks[name][0](target) for name in attacks if name in names - PATIENT}
        outcomes |= {name: future.result() for name, future in waiting.items()}
    return {name: (outcome, attacks[name][1]) for name, outcome in outcomes.items()}


@pytest.fixture
def job(tmp_path: Path, clean_environ: dict[str, str], free_port: int) -> Iterator[Job]:
    environ = clean_environ | {
        "ASCEND_CPT_PYTHON": sys.executable,
        "ASCEND_CPT_ALLOW_LOCAL_MASTER": "1",
        "ASCEND_CPT_RESTART_DELAY_S": "0",
        "ACTOR_ROOT": str(Path(__file__).resolve().parents[2]),
    }
    made = Job(tmp_path, environ, free_port, {})
    yield made
    for process in made.nodes.values():
        process.kill()
        process.wait()
    wait_for(lambda: not find_processes(tmp_path), limit_s=10)


@pytest.mark.slow
def test_launchers_and_workers_go_on(job: Job, secret_file: Path) -> None:
    """All peers that need no time limit, one after the other, against launchers with actors for workers."""
    for node in (0, 1):
        job.start(node, total=10_000)
    job.wait_for_step(5)
    target = make_target(job.port, secret_file)
    slow = {name for name in OUTSIDERS if "700" in name}
    outcomes = replay(target, {*OUTSIDERS, *INSIDERS} - PATIENT - slow)
    assert len(outcomes) >= 40
    assert {name: found for name, (found, expected) in outcomes.items() if found != expected} == {}
    step = job.checkpoint()
    job.wait_for_step(step + 10)
    assert [process.poll() for process in job.nodes.values()] == [None, None], job.text(0) + job.text(1)
    assert job.starts() == ["0 from 0", "1 from 0"], "the job was restarted"
    # The secret is neither on a command line, nor in an environment, nor in a log.
    secret = secret_file.read_text()
    for process in find_processes(job.folder):
        assert secret not in " ".join([*process.cmdline(), *process.environ().values()])
    logs = [path for path in job.folder.rglob("*") if path.is_file()]
    assert len(logs) > 5 and not any(secret in path.read_text(errors="replace") for path in logs)
    assert "without this job's secret, the last from 127.0.0.1" in job.text(0)
    # A stop from a node of the job still counts.
    job.nodes[1].terminate()
    assert [job.wait(0), job.wait(1)] == [143, 143], job.text(0) + job.text(1)


@pytest.mark.slow
def test_a_node_with_another_secret_does_not_disturb_the_others(job: Job, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch(0o600)
    other.write_text("z" * 40)
    right = job.environ
    job.start(0, total=20)
    job.environ = right | {"ASCEND_CPT_SECRET_FILE": str(other)}
    job.start(1, total=20)
    time.sleep(4)
    assert "without this job's secret" in job.text(0)
    assert job.nodes[1].poll() is None, job.text(1)
    job.nodes[1].kill()
    job.nodes[1].wait()
    job.environ = right
    job.start(1, total=20)
    assert [job.wait(0), job.wait(1)] == [0, 0], job.text(0) + job.text(1)


@pytest.mark.slow
def test_several_nodes_without_a_secret(job: Job, tmp_path: Path) -> None:
    job.environ |= {"ASCEND_CPT_SECRET_FILE": "", "XDG_CONFIG_HOME": str(tmp_path)}
    job.start(0)
    assert job.wait(0) == 2
    assert "error: the job has 2 nodes but no secret" in job.text(0)
    assert len(job.text(0).splitlines()) == 1
    for node in (0, 1):
        job.start(node, total=10, options="--insecure")
    assert [job.wait(0), job.wait(1)] == [0, 0], job.text(0) + job.text(1)
    assert "warning: --insecure" in job.text(1)


def launch_pair(config: Path, port: int, log_dir: Path) -> list[subprocess.CompletedProcess[str]]:
    """Train on two nodes of one worker each, and return what both launchers printed."""

    def run_node(rank: int) -> subprocess.CompletedProcess[str]:
        form = ["2", "1", "127.0.0.1", str(port), str(rank), str(log_dir / str(rank)), "False", "600"]
        command = ["bash", "scripts/msrun_launcher.sh", f"run_cpt.py --config {config}", *form]
        return run_command(command, env={"ASCEND_CPT_ALLOW_LOCAL_MASTER": "1"}, timeout_s=1500)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run_node, range(2)))


def attack_once_it_trains(job: Future[Any], run_dir: Path, target: Target) -> None:
    """Replay all attacks on a job in training, and check that it still trains after them."""
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() or job.done(), limit_s=600)
    assert not job.done(), job.result()
    with pytest.raises(ConnectionRefusedError):
        # The job channel is closed before training.
        socket.create_connection((target.address[0], target.address[1] - 1), timeout=2)
    outcomes = replay(target, {*OUTSIDERS, *INSIDERS})
    assert {name: found for name, (found, expected) in outcomes.items() if found != expected} == {}
    assert not job.done(), "the job ended before the attacks: raise NUM_STEPS"


@pytest.mark.slow
@pytest.mark.timeout(3200)
def test_losses_are_those_of_an_undisturbed_run(
    write_config: Callable[..., Path],  # noqa: F811
    tmp_path: Path,
    free_port: int,
    secret_file: Path,
) -> None:
    changes = {"train_tokens": NUM_STEPS * 8 * SEQ_LENGTH, "schedule": {"peak_lr": 1e-3}, "validation": None}
    changes |= {"checkpoint": {"every": "50 steps"}}
    histories = []
    for name, is_attacked in (("alone", False), ("attacked", True)):
        config = write_config(run_name=name, **changes)
        port = free_port if is_attacked else find_free_port()
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(launch_pair, config, port, tmp_path / f"log_{name}")
            if is_attacked:
                attack_once_it_trains(job, tmp_path / "output" / name, make_target(port, secret_file))
            for result in job.result():
                assert result.returncode == 0, result.stdout + result.stderr
                assert "restart" not in result.stderr
        histories.append(read_history(tmp_path / "output" / name))
    assert len(histories[0]) >= NUM_STEPS
    assert histories[0] == histories[1]
