"""Guards and alarms in training: what stops a run, which files remain, and that resuming is exact."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.monitor.history import read_metrics

Completed = subprocess.CompletedProcess[str]
# So low that normal training of a tiny model has spikes; real runs use the defaults.
NERVOUS = {
    "loss_spike": {"sigmas": 0.7, "window_steps": 8},
    "grad_norm_spike": {"sigmas": 1.2, "window_steps": 8},
    "max_skips_in_a_row": 19,
}
MEASURED = (
    "step_time_s", "tokens_per_s", "tokens_per_s_per_device", "tflops_per_device", "data_wait_s", "compute_s"
)  # fmt: skip


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    """Return all records without their timings."""
    records = [record for record in read_metrics(run_dir / "metrics.jsonl") if record["kind"] != "start"]
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in records]


def is_one_line(result: Completed) -> bool:
    return len(result.stderr.strip().splitlines()) == 1


def test_guarded_run_resumes_exactly(
    write_config: Callable[..., Path], train: Callable[..., Completed], packed: Path, tmp_path: Path
) -> None:
    sets = {"held": {"path": str(packed), "max_increase": 0.5}}
    validation = {"max_rows": 10, "every": "5 steps", "sets": sets}
    schedule = {"kind": "constant", "peak_lr": 1e-5}  # the loss hardly falls, so its noise gives spikes
    changes = {"guards": NERVOUS, "validation": validation, "schedule": schedule}
    whole = train(write_config(run_name="whole", **changes))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    config = write_config(run_name="stopped", **changes)
    for arguments in (("--stop-at-step", "10"), ()):
        result = train(config, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
    records = read_records(tmp_path / "output/whole")
    assert read_records(tmp_path / "output/stopped") == records
    steps = [record for record in records if record["kind"] == "step"]
    skipped = {record["skipped"] for record in steps if record["skipped"]}
    assert skipped == {"loss spike", "gradient-norm spike"}, "both kinds occur"
    numbers = [step["num_skipped"] for step in steps]
    assert 0 < numbers[9] < numbers[-1] and "SKIPPED" in whole.stdout
    held = [record for record in records if record["kind"] == "validation"]
    assert [record["step"] for record in held] == [0, 5, 10, 15, 20]
    assert {record["base_loss"] for record in held} == {held[0]["loss"]}, "not measured again"
    # 100 rows, 50 of which carry 25 tokens less; bytes of the manifest.
    assert held[0]["bits_per_byte"] > 0 and held[0]["perplexity"] > 1
    account = [record for record in records if record["kind"] == "data"][-1]
    assert account == {"kind": "data", "step": 20, "tokens": {"train": {"train": 10240}}, "epochs": {"train": 1.6}}
    page = (tmp_path / "output/stopped/report.html").read_text(encoding="utf-8")
    assert "20 of 20" in page and list((tmp_path / "output/stopped/tensorboard").glob("events.*"))


@pytest.mark.slow
def test_two_workers_make_the_same_decisions(
    write_config: Callable[..., Path], launch: Callable[..., Completed], tmp_path: Path, free_ports: list[int]
) -> None:
    schedule = {"kind": "constant", "peak_lr": 1e-5}
    config = write_config(guards=NERVOUS, validation=None, schedule=schedule)
    result = launch(config, port=free_ports[0], log_dir=tmp_path / "log")
    assert result.returncode == 0, result.stdout + result.stderr
    steps = [record for record in read_records(tmp_path / "output/run") if record["kind"] == "step"]
    assert {step["skipped"] for step in steps} == {"", "loss spike", "gradient-norm spike"}
    # If only one worker skipped an update, the averaged losses would diverge.
    assert len(steps) == 20 and all(6.2 < step["loss"] < 6.5 for step in steps)


def test_forgetting_alarm_stops_the_run_after_saving_and_again_on_resume(
    write_config: Callable[..., Path], train: Callable[..., Completed], packed: Path, tmp_path: Path
) -> None:
    sets = {"held": {"path": str(packed), "max_increase": 0.01, "on_increase": "stop"}}
    config = write_config(
        validation={"max_rows": 10, "every": "3 steps", "sets": sets},
        schedule={"kind": "constant", "peak_lr": 0.5},
        checkpoint={"every": "2 steps"},
    )
    stopped = train(config)
    assert stopped.returncode == 1, stopped.stdout + stopped.stderr
    for part in ("stopped by on_increase", "validation set held at step 3", "from its baseline", "saved in"):
        assert part in stopped.stderr
    assert is_one_line(stopped), stopped.stderr
    assert (tmp_path / "output/run/checkpoint/iteration_00000003/cpt_state.json").is_file()
    again = train(config)
    assert again.returncode == 1 and "stopped by on_increase" in again.stderr and is_one_line(again), again.stderr
    assert "step  4/20" not in again.stdout
    on = train(config, "--set", "cpt.validation.sets.held.on_increase=warn", "--stop-at-step", "6")
    assert on.returncode == 0, on.stderr
    assert "step  4/20" in on.stdout and "ALARM" in on.stdout


def test_alarm_with_patience_stops_at_the_same_step_after_a_resume(
    write_config: Callable[..., Path], train: Callable[..., Completed], packed: Path, tmp_path: Path
) -> None:
    sets = {"held": {"path": str(packed), "max_increase": 0.01, "on_increase": "stop", "patience": "5 steps"}}
    config = write_config(
        validation={"max_rows": 16, "every": "3 steps", "sets": sets}, schedule={"kind": "constant", "peak_lr": 0.5}
    )
    first = train(config, "--stop-at-step", "4")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "warning: forgetting: " in first.stdout and "5 of 5 steps of patience left" in first.stdout
    stopped = train(config)
    assert stopped.returncode == 1 and is_one_line(stopped), stopped.stdout + stopped.stderr
    for part in ("validation set held at step 9", "beyond its limit since step 3; patience of 5 steps used up"):
        assert part in stopped.stderr
    assert "2 of 5 steps of patience left" in stopped.stdout
    held = [record for record in read_records(tmp_path / "output/run") if record["kind"] == "validation"]
    assert [(record["step"], record["above_since_step"]) for record in held] == [
        (0, None), (3, 3), (4, 3), (6, 3), (9, 3)
    ]  # fmt: skip
    # Of the rows that are spread over the set, one is padded: the last one of the first file.
    assert {record["num_labels"] for record in held} == {16 * 64 - 25}
    longer = train(config, "--set", "cpt.validation.sets.held.patience=10 steps", "--stop-at-step", "10")
    assert longer.returncode == 0, longer.stderr
    page = (tmp_path / "output/run/report.html").read_text(encoding="utf-8")
    assert '"text":"beyond its limit","kind":"rise"' in page


@pytest.mark.slow
def test_a_run_that_recovers_within_its_patience_ends_normally(
    write_config: Callable[..., Path], train: Callable[..., Completed], packed: Path, tmp_path: Path
) -> None:
    # As in the test above, but the learning rate decays.
    sets = {"held": {"path": str(packed), "max_increase": 0.01, "on_increase": "stop", "patience": "5 steps"}}
    config = write_config(
        validation={"max_rows": 16, "every": "3 steps", "sets": sets},
        schedule={"kind": "cosine", "peak_lr": 0.1, "final_lr": 0.0},
    )
    result = train(config)
    assert result.returncode == 0, result.stdout + result.stderr
    held = [record for record in read_records(tmp_path / "output/run") if record["kind"] == "validation"]
    print([(record["step"], round(record["loss"], 2), record["above_since_step"]) for record in held])
    assert [record["above_since_step"] for record in held if record["above_since_step"]] == [3]
    assert held[-1]["step"] == 20 and held[-1]["loss"] < held[0]["loss"]
    page = (tmp_path / "output/run/report.html").read_text(encoding="utf-8")
    assert '"kind":"rise"' in page and '"kind":"recovery"' in page


def test_nan_stops_the_run_and_keeps_rows_and_last_good_checkpoint(
    write_config: Callable[..., Path], train: Callable[..., Completed], tmp_path: Path
) -> None:
    config = write_config(
        schedule={"kind": "constant", "peak_lr": 1e30}, checkpoint={"every": "1 steps"}, validation=None
    )
    result = train(config)
    assert result.returncode == 1 and is_one_line(result), result.stdout + result.stderr
    (path,) = (tmp_path / "output/run").glob("stopped_at_step_*.json")
    saved = json.loads(path.read_text(encoding="utf-8"))
    step = saved["step"]
    assert f"stopped at step {step}: " in result.stderr and str(path) in result.stderr
    assert len(saved["rows"]) == 8 and {row["source"] for row in saved["rows"]} == {"train"}
    assert all(0 <= row["row"] < 100 for row in saved["rows"])
    newest = max((tmp_path / "output/run/checkpoint").glob("iteration_*"))
    assert newest.name == f"iteration_{step - 1:08d}"


def test_wrong_settings_are_refused(write_config: Callable[..., Path], train: Callable[..., Completed]) -> None:
    result = train(write_config(monitor={"sinks": ["tensorbord"]}))
    assert result.returncode == 2 and "did you mean 'tensorboard'?" in result.stderr and is_one_line(result)
