"""Programs that a rehearsal starts: their errors, their time limit, and that none outlives it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ascend_cpt.rehearsal.launch import PORTS_OF_A_JOB, REPOSITORY, Process, StepFailed, find_port

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_an_error_is_reported_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs/program.log"
    process = Process([sys.executable, "-c", "raise ValueError('bang')"], log, timeout_s=60)
    with pytest.raises(StepFailed, match="exit code 1: ValueError: bang") as caught:
        process.succeed()
    assert caught.value.log == log


def test_waiting_ends_when_the_program_does(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", "print('error: no such file'); exit(2)"], tmp_path / "log", timeout_s=60)
    with pytest.raises(StepFailed, match="exit code 2: error: no such file"):
        process.wait_until(lambda: False)


def test_a_program_that_hangs_is_killed(tmp_path: Path) -> None:
    process = Process(SLEEP, tmp_path / "log", timeout_s=0.5)
    with pytest.raises(StepFailed, match="did not end within 0 s; raise --timeout"):
        process.succeed()
    assert process.finish() == -signal.SIGKILL


def test_there_is_no_worker_to_kill_in_another_program(tmp_path: Path) -> None:
    process = Process(SLEEP, tmp_path / "log", timeout_s=60)
    try:
        with pytest.raises(StepFailed, match="no worker was running"):
            process.kill_worker()
    finally:
        process.kill()


def test_a_program_ends_with_a_rehearsal_that_is_killed(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from ascend_cpt.rehearsal.launch import Process
process = Process({SLEEP!r}, Path({str(tmp_path / "log")!r}), timeout_s=60)
print(process._process.pid, flush=True)
process.finish()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs([child], timeout=20)
    assert not alive


def test_three_free_ports() -> None:
    first = find_port()
    with socket.socket() as listener:
        listener.bind(("", first + 2))
        listener.listen()
        second = find_port()
    assert not set(range(first, first + PORTS_OF_A_JOB)) & set(range(second, second + PORTS_OF_A_JOB))
