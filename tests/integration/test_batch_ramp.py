"""A batch ramp: the run goes on with the next size by itself, exactly, also after a stop and with several workers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import SEQ_LENGTH, read_history, run_command

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
