"""A run of two phases on the CPU: exact across the phase boundary when resumed, killed or extended; mmap data."""

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

from ascend_cpt.monitor.goodput.account import compute_goodput
from ascend_cpt.monitor.goodput.timeline import FILE_NAME, read_timeline
from tests.integration.conftest import REPOSITORY, SEQ_LENGTH, read_history

Completed = subprocess.CompletedProcess[str]
STEP_TOKENS = 8 * SEQ_LENGTH


def two_phases(packed: Path) -> dict[str, Any]:
    """Return the `cpt:` keys of a run of 20 steps whose second phase starts at step 10 and adds a source."""
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


@pytest.fixture(scope="module")
def schedule() -> dict[str, Any]:
    """Return a schedule that does not depend on the length of the run."""
    return {"kind": "constant", "peak_lr": 1e-3}


def test_resume_and_extend_across_a_phase_boundary_are_bit_exact(
    write_config: Callable[..., Path],
    train: Callable[..., Completed],
    packed: Path,
    tmp_path: Path,
    schedule: dict[str, Any],
) -> None:
    keys = {**two_phases(packed), "schedule": schedule, "validation": None}
    whole = train(write_config(run_name="whole", **keys))
    assert whole.returncode == 0, whole.stderr
    assert "phase    qa: from step 10 (5.12K) to 20" in whole.stdout

    config = write_config(run_name="stopped", **keys)
    assert train(config, "--stop-at-step", "9").returncode == 0
    resumed = train(config)
    assert resumed.returncode == 0 and "continuing at step 9" in resumed.stdout

    first = {**keys, "train_tokens": None, "phases": keys["phases"][:1]}
    first["sources"] = {name: keys["sources"][name] for name in ("web", "code")}
    assert train(write_config(run_name="longer", **first)).returncode == 0
    longer = write_config(run_name="longer", **keys)
    refused = train(longer)
    assert refused.returncode == 2 and "or give --extend to make the run longer" in refused.stderr
    extended = train(longer, "--extend")
    assert extended.returncode == 0, extended.stderr
    assert "extended at step 10: 10 → 20 steps" in extended.stdout
    assert "learning rate: 0.001 at step 9, 0.001 at step 10" in extended.stdout

    folders = [tmp_path / "output" / name for name in ("whole", "stopped", "longer")]
    histories = [read_history(folder) for folder in folders]
    assert len(histories[0]) == 20 and histories[1] == histories[2] == histories[0]
    weights = [read_weights(folder) for folder in folders]
    assert len(weights[0]) == 2 and weights[1] == weights[2] == weights[0]

    changed = two_phases(packed)
    changed["phases"][1]["blend"]["qa"] = 0.5
    other = train(write_config(run_name="stopped", **{**keys, **changed}))
    assert other.returncode == 2 and "saved by a run with different settings" in other.stderr
    assert "'1/4'" in other.stderr and "'2/5'" in other.stderr


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_kill_at_ten_random_steps(
    write_config: Callable[..., Path], train: Callable[..., Completed], packed: Path, tmp_path: Path
) -> None:
    keys = {**two_phases(packed), "checkpoint": {"every": "1 steps", "keep_last": 2}, "validation": None}
    assert train(write_config(run_name="whole", **keys)).returncode == 0
    config = write_config(run_name="killed", **keys)
    run_dir = tmp_path / "output/killed"
    generator = random.Random(5)
    kills = sorted(generator.sample(range(1, 20), 10))
    start_s = time.time()
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
    wall_s = time.time() - start_s
    folders = [tmp_path / "output" / name for name in ("whole", "killed")]
    histories = [read_history(folder) for folder in folders]
    assert histories[0] == histories[1]
    goodput = compute_goodput(read_timeline(run_dir / FILE_NAME))
    assert goodput is not None and (goodput.num_launches, goodput.num_interruptions) == (11, 10)
    assert sum(goodput.seconds.values()) == pytest.approx(goodput.wall_s, rel=1e-6)
    assert goodput.wall_s == pytest.approx(wall_s, rel=0.05)  # without the exit of the last process
    assert goodput.seconds["starting"] > 0 and goodput.seconds["compiling"] > 0 and goodput.mean_recovery_s is not None
    assert read_weights(folders[0]) == read_weights(folders[1])


def wait_for_step(metrics: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the record of `step` is written."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it was killed"
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
        steps = [json.loads(line)["step"] for line in lines if line.endswith("}") and '"kind": "step"' in line]
        if steps and max(steps) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was never reached")
