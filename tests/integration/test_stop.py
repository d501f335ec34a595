"""SIGTERM and Ctrl-C: a run saves its current step and ends; the same command resumes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.checkpoint.locate import find_newest_complete
from tests.integration.conftest import REPOSITORY, SEQ_LENGTH, read_history, run_command

NUM_STEPS = 20_000
DOUBLE = """\
import os, signal, sys, time
from ascend_cpt.backend.training import stop_signals as stop_signal
stop_signal.install(sys.stdout)
os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGTERM)  # MindSpore turns Ctrl-C into this; it counts as the same request
print("still here", flush=True)
time.sleep(stop_signal.ECHO_S + 0.1)
os.kill(os.getpid(), signal.SIGINT)
print("not reached")
"""


def stop_after_some_steps(command: list[str], run_dir: Path, number: int) -> tuple[int, str]:
    """Start a command, send it a signal after some steps; return its exit code and its output."""
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "ASCEND_CPT_PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not (run_dir / "metrics.jsonl").is_file() or len(read_history(run_dir)) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def assert_saved(run_dir: Path, output: str, *names: str) -> None:
    newest, skipped = find_newest_complete(run_dir / "checkpoint")
    assert newest is not None and not skipped
    assert newest.state.step == read_history(run_dir)[-1][1]
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    heads = [f"error: stopped by {name} after step {newest.state.step} of {NUM_STEPS}; saved in" for name in names]
    assert len(errors) == 1 and errors[0].startswith(tuple(heads)), output
    assert "Traceback" not in output


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_launched_run_saves_and_ends(
    number: signal.Signals, write_config: Callable[..., Path], tmp_path: Path, free_ports: list[int]
) -> None:
    config = write_config(train_tokens=NUM_STEPS * 8 * SEQ_LENGTH, validation=None)
    command = ["bash", "scripts/msrun_launcher.sh", f"run_cpt.py --config {config}", "2", str(free_ports[0])]
    run_dir = tmp_path / "output/run"
    code, output = stop_after_some_steps([*command, str(tmp_path / "log"), "False", "300"], run_dir, number)
    assert code == 128 + number, output
    assert f"{number.name}: stopping the workers" in output
    assert_saved(run_dir, output, "SIGTERM", number.name)


def test_ctrl_c_saves_and_ends_a_plain_run(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config(train_tokens=NUM_STEPS * 8 * SEQ_LENGTH, validation=None)
    run_dir = tmp_path / "output/run"
    command = [sys.executable, "run_cpt.py", "--config", str(config)]
    code, output = stop_after_some_steps(command, run_dir, signal.SIGINT)
    # MindSpore turns it into SIGTERM while a step runs.
    assert code in (128 + signal.SIGINT, 128 + signal.SIGTERM), output
    assert "saving after this step, then exiting (send it again to exit at once without saving)" in output
    assert_saved(run_dir, output, "SIGINT", "SIGTERM")


def test_a_second_interrupt_ends_at_once() -> None:
    result = run_command([sys.executable, "-c", DOUBLE])
    assert result.returncode == 128 + signal.SIGINT, result.stderr
    answer = "SIGINT: saving after this step, then exiting (send it again to exit at once without saving)"
    assert result.stdout.splitlines()[-3:] == [answer, "still here", "interrupted"]


def test_a_deliberate_stop_is_not_restarted(
    write_config: Callable[..., Path], tmp_path: Path, free_ports: list[int]
) -> None:
    config = write_config(schedule={"kind": "constant", "peak_lr": 1e30}, validation=None)
    command = ["bash", "scripts/msrun_launcher.sh", f"run_cpt.py --config {config}", "1", str(free_ports[0])]
    options = ["--max-restarts", "3", "--restart-delay", "0"]
    result = run_command([*command, str(tmp_path / "log"), "False", "300", *options])
    assert result.returncode == 1, result.stderr
    assert "error: stopped at step" in result.stderr
    assert "restart" not in result.stderr
