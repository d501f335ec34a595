"""Reading a run for the report: damaged and unfinished lines, lines that were added, and the reduction of curves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ascend_cpt.errors import DataError
from ascend_cpt.monitor.record import ValidationRecord
from ascend_cpt.monitor.report import run_data
from ascend_cpt.monitor.report.curves import downsample, make_curve, smooth
from ascend_cpt.monitor.report.run_data import NoSteps, RunReader, load_run, load_runs
from ascend_cpt.monitor.report.step_columns import NAMES
from ascend_cpt.monitor.sinks import JsonlSink
from tests.unit.monitor.report.test_report import write_run
from tests.unit.monitor.test_sinks import make_step


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a run folder"),
        ("", "has no steps yet"),
        ("hello\n", "line 1 is not a valid record"),
        ('{"kind": "step", "step": 1}\n{}\n', "line 1 is not a valid record"),
        ("\n", "line 1 is not a valid record"),
        ("[1]\n", "line 1 is not a valid record"),
        ('{"kind": "validation", "step": 0, "name": "a", "loss": 1.0}\n', "has no steps yet"),
        ('{"kind": "validation", "step": 0, "name": "a", "loss": "many"}\n', "line 1 is not a valid record"),
        ('{"kind": "task", "step": 0, "name": "a", "metric": "acc", "score": "x"}\n', "line 1 is not a valid record"),
    ],
)
def test_damaged_run_gives_a_one_line_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        load_run(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_damaged_run_json_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "x")
    (run / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"run\.json: is not valid JSON"):
        load_run(run)


@given(values=arrays(np.float64, st.integers(1, 5000), elements=st.floats(-1e6, 1e6) | st.just(math.nan)))
def test_downsampling_keeps_ends_extremes_and_gaps(values: Any) -> None:
    kept = downsample(values, 50)
    assert len(kept) <= 50 * 3 + 2 and kept[0] == 0 and kept[-1] == len(values) - 1
    assert (np.diff(kept) > 0).all()
    finite = values[np.isfinite(values)]
    if len(finite):
        assert np.nanmax(values[kept]) == finite.max() and np.nanmin(values[kept]) == finite.min()
    assert np.isnan(values[kept]).any() == np.isnan(values).any()


def test_smoothing_ignores_nan() -> None:
    values = np.arange(1000.0)
    values[500] = np.nan
    means, window = smooth(values, np.arange(1000))
    assert window == 21 and means[100] == 100.0 and means[0] == 5.0
    assert means[505] == pytest.approx((sum(range(495, 516)) - 500) / 20)


def test_column_without_values_has_no_curve() -> None:
    assert make_curve(np.arange(3.0), np.full(3, np.nan)) is None


def write_lines(run_dir: Path, records: list[dict[str, Any]]) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return run_dir


def make_lines(random: Any, count: int) -> list[dict[str, Any]]:
    """Records as a run writes them, some with values that are not numbers, some of other kinds or spelled otherwise."""
    lines: list[dict[str, Any]] = []
    for step in range(1, count + 1):
        record: dict[str, Any] = {
            "kind": "step", "step": step, "total_steps": count, "loss": random.choice([2.5, 3, 1e-7, 123456.789]),
            "learning_rate": 1e-5 / step, "grad_norm": random.choice([0.5, None, 7]), "tokens": 100 * step,
            "step_time_s": 2.0, "tokens_per_s": 50.0, "skipped": random.choice(["", "", "loss spike"]),
            "phase": "a, b",
        }  # fmt: skip
        if random.random() < 0.02:
            record["loss"] = random.choice(["nan", "inf", "-inf"])
        if random.random() < 0.02:
            record = dict(reversed(record.items()))  # as no version of JsonlSink writes it
        if random.random() < 0.02:
            record = {key: record[key] for key in sorted(record, key=lambda key: (key != "kind", key != "step", key))}
        lines.append(record)
        if random.random() < 0.05:
            lines.append({"kind": "validation", "step": step, "name": "held", "loss": 2.0, "num_labels": 9})
        if random.random() < 0.02:
            lines.append({"kind": "data", "step": step, "tokens": {"a": {"web": step}}, "epochs": {"web": 0.5}})
    return lines


@pytest.mark.parametrize("seed", range(5))
def test_reading_in_blocks_gives_what_a_parser_of_lines_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    import random

    lines = make_lines(random.Random(seed), 700)
    monkeypatch.setattr(run_data, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(run_data, "FEW_LINES", 5)
    run = load_run(write_lines(tmp_path / "run", lines))
    steps = [line for line in lines if line["kind"] == "step"]
    for name in NAMES:
        wanted = [math.nan if line.get(name) is None else float(line[name]) for line in steps]
        np.testing.assert_array_equal(run.columns[name], wanted, name)
    assert run.skipped == {line["step"]: line["skipped"] for line in steps if line["skipped"]}
    assert len(run.validation.get("held", ())) == sum(line["kind"] == "validation" for line in lines)
    accounts = [line for line in lines if line["kind"] == "data"]
    assert run.account == (accounts[-1] if accounts else None)


@pytest.mark.parametrize(
    "damage", ["{}", '{"kind": "step", "step": 1}', '{"kind": "validation", "step": "x"}', "", "[1"]
)
def test_the_damaged_line_of_a_long_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setattr(run_data, "CHUNK_BYTES", 5000)
    monkeypatch.setattr(run_data, "FEW_LINES", 5)
    run = write_run(tmp_path / "x")
    sink = JsonlSink(run / "metrics.jsonl", 20)
    for step in range(21, 200):
        sink.write(make_step(step))
    sink.close()
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines.insert(149, damage)
    (run / "metrics.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    with pytest.raises(DataError, match="line 150 is not a valid record"):
        load_run(run)


@pytest.mark.parametrize("value", [0, -5, "nan", None, "inf"])
def test_step_that_is_not_a_positive_number(tmp_path: Path, value: Any) -> None:
    lines = [{**vars(make_step(1)), "kind": "step", "tokens": value}]
    with pytest.raises(DataError, match="a step has a tokens that is not a positive number") as error:
        load_run(write_lines(tmp_path, lines))
    assert str(tmp_path) in str(error.value)


def test_reader_adds_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "x")
    metrics = run / "metrics.jsonl"
    reader = RunReader(run)
    assert len(reader.read().columns["step"]) == 20
    before = reader.find_version()
    assert reader.find_version() == before
    added: list[bytes] = []
    add = RunReader._add_chunk
    monkeypatch.setattr(
        RunReader, "_add_chunk", lambda self, chunk, *rest: added.append(chunk) or add(self, chunk, *rest)
    )
    line = json.dumps({"kind": "step", **vars(make_step(21, loss=1.5))})
    with metrics.open("a", encoding="utf-8") as file:
        file.write(line[:50])
    assert len(reader.read().columns["step"]) == 20, "an unfinished line waits"
    with metrics.open("a", encoding="utf-8") as file:
        file.write(line[50:] + "\n")
    assert reader.read().columns["loss"][-1] == 1.5 and reader.find_version() != before
    assert added == [line.encode() + b"\n"]
    sink = JsonlSink(
        metrics, 10
    )  # a launch that resumes at step 10 replaces the file, which then grows beyond its size
    for step in range(11, 41):
        sink.write(make_step(step, loss=9.0))
    sink.close()
    data = reader.read()
    assert data.columns["step"].tolist() == list(range(1, 41)) and len(data.validation["general"]) == 2
    assert (data.columns["loss"][10:] == 9).all()
    assert list(data.skipped) == [7]


def test_reader_recovers_when_a_damaged_file_is_corrected(tmp_path: Path) -> None:
    run = write_run(tmp_path / "x")
    good = (run / "metrics.jsonl").read_bytes()
    reader = RunReader(run)
    (run / "metrics.jsonl").write_bytes(good + b"{}\n")
    with pytest.raises(DataError, match="line 25 is not a valid record"):
        reader.read()
    (run / "metrics.jsonl").write_bytes(good)
    assert len(reader.read().columns["step"]) == 20


def test_run_that_has_not_finished_a_step(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    sink.write(ValidationRecord(step=0, name="held", loss=2.0, num_labels=9))
    reader = RunReader(tmp_path)
    with pytest.raises(NoSteps):
        reader.read()
    sink.write(make_step(1))
    sink.close()
    data = reader.read()
    assert len(data.columns["step"]) == 1 and len(data.validation["held"]) == 1


def test_several_runs_are_read_in_the_given_order(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name) for name in "cab"]
    assert [run.name for run in load_runs(folders)] == ["c", "a", "b"]


def test_values_belong_to_their_keys(tmp_path: Path) -> None:
    first = {"kind": "step", **vars(make_step(1, loss=7.0))}
    exchanged = {{"loss": "step", "step": "loss"}.get(key, key): value for key, value in first.items()}
    exchanged |= {"step": 2, "loss": 9}
    columns = load_run(write_lines(tmp_path, [first, exchanged])).columns
    assert columns["step"].tolist() == [1, 2] and columns["loss"].tolist() == [7, 9]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("other", ["yearning_rate", "learning_cost"])
def test_a_record_with_another_key_at_the_same_place(tmp_path: Path, number: int, other: str) -> None:
    records = [{"kind": "step", **vars(make_step(step, loss=7.0))} for step in (1, 2, 3)]
    records[number] = {{"learning_rate": other}.get(key, key): value for key, value in records[number].items()}
    with pytest.raises(DataError, match=f"line {number + 1} is not a valid record"):
        load_run(write_lines(tmp_path, records))
