"""Records on the console and in metrics.jsonl."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_cpt.errors import DataError
from ascend_cpt.monitor.history import read_metrics
from ascend_cpt.monitor.picture import draw_losses
from ascend_cpt.monitor.record import DataRecord, Record, StepRecord, TaskRecord, ValidationRecord, to_values
from ascend_cpt.monitor.sinks import (
    ConsoleSink,
    JsonlSink,
    SinkGroup,
    format_account,
    format_duration,
    format_step,
    format_validation,
)
from ascend_cpt.monitor.summary import summarize_run


def make_step(step: int, loss: float = 2.0, **changes: Any) -> StepRecord:
    return StepRecord(
        step=step,
        total_steps=20,
        loss=loss,
        learning_rate=1e-3,
        grad_norm=0.5,
        tokens=step * 4096,
        step_time_s=2.0,
        tokens_per_s=2048.0,
        **changes,
    )


def test_progress_line() -> None:
    line = format_step(make_step(5))
    for part in (
        "step  5/20",
        "loss 2.0000",
        "lr 1.000e-03",
        "grad-norm 0.5",
        "2.05K tokens/s",
        "20.5K tokens",
        "ETA 0:00:30",
    ):
        assert part in line


def test_durations() -> None:
    assert [format_duration(s) for s in (59, 3661, 90000)] == ["0:00:59", "1:01:01", "1d 1:00:00"]


def test_console_prints_first_last_and_every_nth() -> None:
    stream = io.StringIO()
    sink = ConsoleSink(stream, 10)
    for step in range(1, 21):
        sink.write(make_step(step))
    sink.write(ValidationRecord(step=20, name="code", loss=math.log(4), num_labels=10))
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["1/20", "10/20", "20/20"]
    assert lines[-1] == "validation at step 20: code  loss 1.3863  perplexity 4.00"


def test_metrics_file_drops_steps_repeated_by_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path, 0)
    for step in (1, 2, 3):
        sink.write(make_step(step))
    with path.open("a") as file:
        file.write('{"kind": "step", "st')  # killed while writing
    sink = JsonlSink(path, 2)
    sink.write(make_step(3, loss=float("nan")))
    records = list(read_metrics(path))
    assert [record["step"] for record in records] == [1, 2, 3]
    assert records[-1]["loss"] == "nan"
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_new_run_starts_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonlSink(path, 0).write(make_step(1))
    JsonlSink(path, 0)
    assert list(read_metrics(path)) == []


def test_picture(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    for step in range(1, 6):
        sink.write(make_step(step))
    sink.write(ValidationRecord(step=5, name="code", loss=1.0, num_labels=10))
    draw_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png", title="run")
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_picture_marks_rises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: dict[str, list[list[float]]] = {}

    def keep(figure: Figure, *arguments: object, **settings: object) -> None:
        for line in figure.axes[0].get_lines():
            drawn[str(line.get_label())] = np.asarray(line.get_xydata()).tolist()
        save(figure, *arguments, **settings)

    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", keep)
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    for step, loss in enumerate([2.0, 2.5, 2.4, 2.0, 2.6]):
        sink.write(make_step(step + 1))
        sink.write(ValidationRecord(step=step, name="code", loss=loss, num_labels=10, alarm=loss > 2.1))
    draw_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png", title="run")
    assert drawn["above its limit"] == [[1, 2.5], [4, 2.6]]
    assert drawn["below its limit again"] == [[3, 2.0]]


def test_summary_has_losses_before_and_after(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    sink.write(ValidationRecord(step=0, name="code", loss=3.0, num_labels=10))
    for step in range(1, 21):
        sink.write(make_step(step, loss=3.0 - step / 20))
    sink.write(ValidationRecord(step=20, name="code", loss=2.25, num_labels=10))
    text = "\n".join(summarize_run(tmp_path))
    assert "20 of 20 steps, 81.9K tokens" in text
    assert "2.9500 at step 1 → 2.0000 at step 20" in text
    assert "held-out code     3.0000 before → 2.2500 after (-0.7500)" in text
    with pytest.raises(DataError, match="not a run folder"):
        summarize_run(tmp_path / "nowhere")


def test_a_skipped_step_is_always_shown() -> None:
    stream = io.StringIO()
    ConsoleSink(stream, 10).write(make_step(7, skipped="loss spike", num_skipped=2, phase="qa", mfu=0.4567))
    line = stream.getvalue()
    assert "SKIPPED (loss spike; 2 so far)" in line and "7/20  qa  loss" in line and "MFU 45.7%" in line


def test_progress_line_has_the_compute_of_a_device() -> None:
    assert "2.05K tokens/s  152 TFLOPS/device  MFU 51.6%  " in format_step(
        make_step(5, tflops_per_device=152.2, mfu=0.516)
    )
    assert "TFLOPS" not in format_step(make_step(5))


def test_validation_line_has_the_difference_from_the_base() -> None:
    record = ValidationRecord(
        step=9, name="code", loss=2.5, num_labels=10, bits_per_byte=0.75, base_loss=2.25, base_step=0, alarm=True
    )
    assert format_validation(record).endswith("perplexity 12.18  bits/byte 0.7500  (+0.2500 from step 0)  ALARM")


def make_score(step: int, score: float, **changes: Any) -> TaskRecord:
    values = {"acc": score, "acc_norm": 0.5}
    return TaskRecord(step=step, name="arc", metric="acc", score=score, num_items=100, values=values, **changes)


def test_task_line_has_the_difference_from_the_base() -> None:
    stream = io.StringIO()
    sink = ConsoleSink(stream, 10)
    sink.write(make_score(0, 0.5, base_score=0.5, base_step=0))
    sink.write(make_score(9, 0.25, base_score=0.5, base_step=0, alarm=True, above_since_step=9))
    assert stream.getvalue().splitlines() == [
        "task at step 0: arc  acc 0.5000  acc_norm 0.5000  100 items",
        "task at step 9: arc  acc 0.2500  (-0.2500 from step 0)  acc_norm 0.5000  100 items  ALARM",
    ]


def test_scores_of_a_task_are_in_metrics_and_summary(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    sink.write(make_score(0, 0.5))
    sink.write(make_step(1))
    last = make_score(1, math.nan, alarm=True, above_since_step=1)
    sink.write(last)
    line = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert line.startswith('{"kind": "task", "step": 1, "name": "arc", "metric": "acc", "score": "nan", ')
    assert json.loads(line) == to_values(last) and json.loads(line)["values"] == {"acc": "nan", "acc_norm": 0.5}
    assert "  task arc          acc 0.5000 before → nan after (+nan, ALARM)" in summarize_run(tmp_path)


def test_account_lines() -> None:
    record = DataRecord(
        step=9,
        tokens={"general": {"web": 3000}, "qa": {"web": 1000, "qa": 500}},
        epochs={"web": 0.5, "qa": 2.0, "new": 0},
    )
    assert format_account(record) == [
        "web: 3K in general, 1K in qa; 0.50 epochs",
        "qa: 500 in qa; 2.00 epochs",
        "new: none; 0.00 epochs",
    ]


class FailingSink:
    def __init__(self) -> None:
        self.num_calls = 0

    def write(self, record: Record) -> None:
        self.num_calls += 1
        raise OSError("disk full")

    def close(self) -> None:
        self.num_calls += 1


def test_failing_sink_is_dropped_with_one_warning(tmp_path: Path) -> None:
    stream, failing = io.StringIO(), FailingSink()
    group = SinkGroup([failing, JsonlSink(tmp_path / "metrics.jsonl", 0)], stream)
    for step in (1, 2, 3):
        group.write(make_step(step))
    group.close()
    assert failing.num_calls == 1
    assert stream.getvalue().count("warning: FailingSink failed") == 1 and "disk full" in stream.getvalue()
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_closed_console_raises_no_error() -> None:
    class ClosedConsole(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    group = SinkGroup([ConsoleSink(ClosedConsole(), 1)], io.StringIO())
    group.write(make_step(1))
    assert not group
