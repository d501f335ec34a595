"""A batch ramp: the run goes on with the next size by itself, exactly, also after a stop and with several workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import REPOSITORY, SEQ_LENGTH, find_worker, read_history, run_command

TIMEOUT_S = 900
# 3 steps of 4 rows, then 3 of 8.
RAMP = [{"until": 3 * 4 * SEQ_LENGTH, "size": 4}, {"size": 8}]
CHANGES: dict[str, Any] = {
    "global_batch_size": RAMP,
    "train_tokens": 3 * 12 * SEQ_LENGTH,
    "validation": None,
    "schedule": {"peak_lr": 1e-3, "final_lr": 1e-4},
}


def train(config: Path, *arguments: str) -> str:
    command = [sys.executable, "run_cpt.py", "--config", str(config), *arguments]
    result = run_command(command, timeout_s=TIMEOUT_S)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def read_steps(run_dir: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "step"]


@pytest.mark.slow  # nine starts of a training process
@pytest.mark.timeout(3 * TIMEOUT_S)
def test_a_ramp_is_exact_under_resume_and_for_any_number_of_workers(
    write_config: Callable[..., Path], launch: Callable[..., Any], tmp_path: Path, free_port: int
) -> None:
    out = train(write_config(run_name="whole", **CHANGES))
    assert "batch    from step 3 (768): 8 rows × 64 tokens" in out
    assert "batch    from step 3 on 8 rows: starting again from the checkpoint" in out
    assert "continuing at step 3" in out and "step 6/6" in out
    output = tmp_path / "output"
    steps = read_steps(output / "whole")
    assert [record["tokens"] // SEQ_LENGTH for record in steps] == [4, 8, 12, 20, 28, 36]
    state = json.loads((output / "whole/checkpoint/iteration_00000006/cpt_state.json").read_text())
    assert (state["step"], state["position"], state["tokens"]) == (6, 36, 36 * SEQ_LENGTH)

    config = write_config(run_name="stopped", **CHANGES)
    for step in ("2", "5"):
        assert f"stopped  after step {step} of 6" in train(config, "--stop-at-step", step)
    assert "step 6/6" in train(config)
    assert read_history(output / "stopped") == read_history(output / "whole")

    config = write_config(run_name="two", **CHANGES)
    two = launch(config, port=free_port, log_dir=tmp_path / "log", timeout_s=TIMEOUT_S)
    assert two.returncode == 0, two.stdout + two.stderr
    assert "the job continues after step 3" in two.stderr + two.stdout
    losses = [record["loss"] for record in read_steps(output / "two")]
    assert losses == pytest.approx([record["loss"] for record in steps], abs=1e-4)


STAGE_STEPS = 50
"""Steps of each stage of the runs that are killed. A checkpoint is saved every 10 steps."""
KILLED_AT = (15, STAGE_STEPS + 15)
"""Steps after which the runs are killed, one in each stage, with steps since the last checkpoint."""
LONG_RAMP: dict[str, Any] = {
    **CHANGES,
    "global_batch_size": [{"until": STAGE_STEPS * 4 * SEQ_LENGTH, "size": 4}, {"size": 8}],
    "train_tokens": STAGE_STEPS * 12 * SEQ_LENGTH,
    "checkpoint": {"every": "10 steps"},
}


def kill_after(process: subprocess.Popen[str], run_dir: Path, step: int) -> None:
    """Kill a training process once its run has finished a step."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not (run_dir / "metrics.jsonl").is_file() or all(record["step"] < step for record in read_steps(run_dir)):
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.05)
    launched = psutil.Process(process.pid)
    (find_worker(launched, 1) or launched).kill()  # without a launcher it trains itself


@pytest.mark.slow  # two runs of two launches, and two that are killed and start again
@pytest.mark.timeout(4 * TIMEOUT_S)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_with_a_ramp_has_the_same_losses(
    workers: int, write_config: Callable[..., Path], tmp_path: Path, free_ports: list[int]
) -> None:
    """One process is started again by the test, the launcher starts two workers again by itself."""
    configs = {name: write_config(run_name=name, **LONG_RAMP) for name in ("whole", "killed")}

    def start(name: str, port: int) -> subprocess.Popen[str]:
        command = f"run_cpt.py --config {configs[name]}"
        form = [str(workers), str(port), str(tmp_path / f"log_{name}"), "False", "300"]
        launcher = ["bash", "scripts/msrun_launcher.sh", "--max-restarts", "5", command, *form]
        return subprocess.Popen(
            [sys.executable, *command.split()] if workers == 1 else launcher,
            cwd=REPOSITORY,
            env={**os.environ, "ASCEND_CPT_PYTHON": sys.executable, "ASCEND_CPT_RESTART_DELAY_S": "0"},
            stdout=(tmp_path / f"out_{name}").open("a"),
            stderr=subprocess.STDOUT,
            text=True,
        )

    assert start("whole", free_ports[0]).wait(TIMEOUT_S) == 0, (tmp_path / "out_whole").read_text()
    run_dir = tmp_path / "output/killed"
    process = start("killed", free_ports[1])
    for step in KILLED_AT:
        kill_after(process, run_dir, step)
        if workers == 1:
            assert process.wait(TIMEOUT_S) == -signal.SIGKILL
            process = start("killed", free_ports[1])
    printed = tmp_path / "out_killed"
    assert process.wait(TIMEOUT_S) == 0, printed.read_text()
    assert printed.read_text().count("continuing at step ") >= len(KILLED_AT) + 1, "and once for the second stage"
    whole, killed = (read_history(tmp_path / "output" / name) for name in ("whole", "killed"))
    assert len(whole) == 2 * STAGE_STEPS
    assert killed == whole
