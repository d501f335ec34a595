"""A run of two phases on the CPU: exact across the border, whatever stops it; extended, or read from mmap data."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import REPOSITORY, SEQ_LENGTH, read_history

Completed = subprocess.CompletedProcess[str]
STEP_TOKENS = 8 * SEQ_LENGTH


def two_phases(packed: Path) -> dict[str, Any]:
    """Return the `cpt:` keys of a run of 20 steps whose second phase begins at step 10 with one source more."""
    return {
        "sources": {name: {"path": str(packed)} for name in ("web", "code", "qa")},
        "phases": [
            {"name": "general", "tokens": 10 * STEP_TOKENS, "blend": {"web": 0.7, "code": 0.3}},
            {"name": "qa", "blend": {"web": 0.5, "code": 0.25, "qa": 0.25}},
        ],
    }


def read_weights(run_dir: Path) -> list[bytes]:
    """Return the files of the last checkpoint: weights and optimizer."""
    return [path.read_bytes() for path in sorted((run_dir / "checkpoint/iteration_00000020").glob("*.safetensors"))]


def without_validation(history: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [record for record in history if record[0] == "step"]


def test_phases_resume_across_the_border_bit_by_bit(
    write_config: Callable[..., Path], train: Callable[..., Completed], packed: Path, tmp_path: Path
) -> None:
    whole = train(write_config(run_name="whole", **two_phases(packed)))
    assert whole.returncode == 0, whole.stderr
    assert "phase    qa: from step 10 (5.12K) to 20" in whole.stdout
    config = write_config(run_name="stopped", **two_phases(packed))
    for stop in ("9", "11"):
        assert train(config, "--stop-at-step", stop).returncode == 0
    resumed = train(config)
    assert resumed.returncode == 0 and "continuing at step 11" in resumed.stdout
    folders = [tmp_path / "output" / name for name in ("whole", "stopped")]
    histories = [without_validation(read_history(folder)) for folder in folders]
    assert len(histories[0]) == 20 and histories[0] == histories[1]
    weights = [read_weights(folder) for folder in folders]
    assert len(weights[0]) == 2 and weights[0] == weights[1]

    changed = two_phases(packed)
    changed["phases"][1]["blend"]["qa"] = 0.5
    refused = train(write_config(run_name="stopped", **changed))
    assert refused.returncode == 2 and "was saved by a run with other settings" in refused.stderr
    assert "phases:" in refused.stderr and "'1/4'" in refused.stderr and "'2/5'" in refused.stderr


def test_a_run_is_extended_by_a_phase(
    write_config: Callable[..., Path], train: Callable[..., Completed], packed: Path, tmp_path: Path
) -> None:
    schedule = {"kind": "constant", "peak_lr": 1e-3}
    first = {**two_phases(packed), "schedule": schedule, "train_tokens": None}
    first["phases"] = first["phases"][:1]
    del first["sources"]["qa"]
    assert train(write_config(run_name="longer", **first)).returncode == 0
    config = write_config(run_name="longer", **{**two_phases(packed), "schedule": schedule})
    refused = train(config)
    assert refused.returncode == 2 and "or give --extend to make the run longer" in refused.stderr
    extended = train(config, "--extend")
    assert extended.returncode == 0, extended.stderr
    assert "extended at step 10: 10 → 20 steps" in extended.stdout
    assert "the rate goes from 0.001 at step 9 to 0.001 at step 10" in extended.stdout
    # On a constant rate the extended run is the one that was planned so from the start.
    assert train(write_config(run_name="planned", **{**two_phases(packed), "schedule": schedule})).returncode == 0
    histories = [without_validation(read_history(tmp_path / "output" / name)) for name in ("longer", "planned")]
    assert histories[0] == histories[1]


@pytest.mark.slow
def test_kill_at_ten_random_steps(
    write_config: Callable[..., Path], train: Callable[..., Completed], packed: Path, tmp_path: Path
) -> None:
    keys = {**two_phases(packed), "checkpoint": {"every": "1 steps", "keep_last": 2}}
    assert train(write_config(run_name="whole", **keys)).returncode == 0
    config = write_config(run_name="killed", **keys)
    run_dir = tmp_path / "output/killed"
    generator = random.Random(5)
    kills = sorted(generator.sample(range(1, 20), 10))
    for step in kills:
        process = subprocess.Popen(
            [sys.executable, "run_cpt.py", "--config", str(config)],
            cwd=REPOSITORY,
            env={**os.environ, "ASCEND_CPT_PYTHON": sys.executable},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_step(run_dir / "metrics.jsonl", step, process)
        time.sleep(generator.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert train(config).returncode == 0
    folders = [tmp_path / "output" / name for name in ("whole", "killed")]
    histories = [without_validation(read_history(folder)) for folder in folders]
    assert histories[0] == histories[1]
    assert read_weights(folders[0]) == read_weights(folders[1])


def wait_for_step(metrics: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Return once the record of `step` is written."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it was killed"
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
        steps = [json.loads(line)["step"] for line in lines if line.endswith("}") and '"kind": "step"' in line]
        if steps and max(steps) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was never reached")
