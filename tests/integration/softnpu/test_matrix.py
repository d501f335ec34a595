"""Layouts trained on the software NPU, against the same run on the CPU target: losses, validation, weights, resume."""

from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ascend_cpt.run.trained_model import open_trained

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or platform.machine() != "x86_64", reason="the software NPU needs g++ on x86-64"
)

Completed = subprocess.CompletedProcess[str]
# The first batch with a padded row, of which ranks and micro batches weight their means equally, is that of step 4.
NUM_STEPS = 3
# In float32 the emulation rounds once per operator; sums are taken in another order than on the CPU.
MAX_LOSS_DIFFERENCE = 1e-4
# Adam's first steps are about ± the rate: an element whose gradient is almost 0 may get the other sign. Measured: 0.3 %
# after three steps; an optimizer that reads stale moments gives 100 %.
MAX_SHARE_OF_OTHER_UPDATES = 0.02
ASCEND: dict[str, Any] = {
    "context": {"mode": 0, "device_target": "Ascend", "jit_config": {"jit_level": "O0"}, "max_device_memory": "8GB"},
    "runner_config": {"sink_mode": True, "sink_size": 1, "batch_size": 4},
    "parallel": {
        "parallel_mode": 1,
        "enable_alltoall": True,
        "enable_parallel_optimizer": True,
        "parallel_optimizer_config": {"gradient_accumulation_shard": False, "parallel_optimizer_threshold": 0},
    },
}


def make_row(data: int, tensor: int, pipeline: int, *, rows: int, accumulation: int = 1, **changes: Any) -> Any:
    """Return (workers, sections) of a layout with `rows` rows in a micro batch."""
    parallel = {"data_parallel": data, "model_parallel": tensor, "pipeline_stage": pipeline, "vocab_emb_dp": False}
    parallel["use_seq_parallel"] = tensor > 1
    runner = {**ASCEND["runner_config"], "batch_size": rows}
    if pipeline > 1:
        parallel["micro_batch_num"] = accumulation
    elif accumulation > 1:
        runner["gradient_accumulation_steps"] = accumulation
    return data * tensor * pipeline, {**ASCEND, "runner_config": runner, "parallel_config": parallel, **changes}


ROWS = {
    "data 2, accumulation 2": make_row(2, 1, 1, rows=2, accumulation=2),
    "tensor 2, sequence parallel": make_row(1, 2, 1, rows=8),
    "pipeline 2": make_row(1, 1, 2, rows=4, accumulation=2),
    "tensor 2, pipeline 2": make_row(1, 2, 2, rows=2, accumulation=4),
    "data 2, tensor 2, recompute": make_row(2, 2, 1, rows=4, recompute_config={"recompute": True}),
    "data 2, tensor 2, pipeline 2": make_row(2, 2, 2, rows=1, accumulation=4),
}
DEFAULT = "data 2, accumulation 2"


@pytest.fixture
def start(write_config: Callable[..., Path], train: Callable[..., Completed], tmp_path: Path) -> Path:
    """Return the run folder of two steps on the CPU, whose weights every run of a test starts from."""
    result = train(write_config(run_name="start"), "--stop-at-step", "2")
    assert result.returncode == 0, result.stderr
    return tmp_path / "output/start"


def read_losses(run_dir: Path) -> dict[tuple[str, int, str], float]:
    """Return the loss of every record by (kind, step, validation set)."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {
        (record["kind"], record["step"], record.get("name", "")): record["loss"]
        for record in records
        if record["kind"] in ("step", "validation")
    }


def read_weights(run_dir: Path) -> dict[str, np.ndarray]:
    source = open_trained(run_dir).source
    return {name: np.asarray(source.read(name), np.float64) for name in source.tensors}


def share_of_other_updates(start: Path, expected: Path, found: Path) -> float:
    """Return the share of elements whose update differs by more than a tenth of it, over all weights."""
    first, want, have = (read_weights(folder) for folder in (start, expected, found))
    assert want.keys() == have.keys()
    wrong = total = 0
    for name, before in first.items():
        update = want[name] - before
        wrong += int(np.sum(np.abs(have[name] - want[name]) > 0.1 * np.abs(update) + 1e-7))
        total += before.size
    return wrong / total


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", [name if name == DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in ROWS]
)
def test_a_layout_trains_as_the_cpu_does(
    name: str,
    start: Path,
    write_config: Callable[..., Path],
    train: Callable[..., Completed],
    launch: Callable[..., Completed],
    free_ports: list[int],
    tmp_path: Path,
) -> None:
    workers, sections = ROWS[name]
    has_validation = sections["parallel_config"]["pipeline_stage"] == 1
    changes = {} if has_validation else {"validation": None}
    result = train(write_config(run_name="cpu", init_from=str(start), **changes), "--stop-at-step", str(NUM_STEPS))
    assert result.returncode == 0, result.stderr
    config = write_config(run_name="npu", init_from=str(start), **changes)
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **sections}), encoding="utf-8")
    # Stopped after step 1, then resumed.
    for stop, port in ((1, free_ports[0]), (NUM_STEPS, free_ports[1])):
        result = launch(
            config,
            "--stop-at-step",
            str(stop),
            port=port,
            workers=workers,
            log_dir=tmp_path / f"log_{stop}",
            env={"ASCEND_CPT_SOFTNPU": "1"},
            timeout_s=290,
        )
        assert result.returncode == 0, result.stdout + result.stderr
    expected, found = (read_losses(tmp_path / "output" / run) for run in ("cpu", "npu"))
    steps = [key for key in expected if key[0] == "step"]
    assert len(steps) == NUM_STEPS and all(key in found for key in expected)
    assert has_validation == any(key[0] == "validation" for key in expected)
    for key, loss in expected.items():
        assert math.isclose(found[key], loss, abs_tol=MAX_LOSS_DIFFERENCE), (key, loss, found[key])
    share = share_of_other_updates(start, tmp_path / "output/cpu", tmp_path / "output/npu")
    assert share < MAX_SHARE_OF_OTHER_UPDATES, share
    largest = max(abs(found[key] - loss) for key, loss in expected.items())
    print(f"{name}: largest difference of a loss {largest:.1e}, share of other updates {share:.1e}")
