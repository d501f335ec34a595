"""The estimated time to compile, and the records that it is scaled to."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.plan.case import TrainingCase
from ascend_cpt.plan.speed.compile_time import MAX_RECORDS, CompileRecord, estimate_compile, predict_cpu_s
from ascend_cpt.run.planning.compile_records import add_compile_records, find_compile_records, read_compile_records

MakeCase = Callable[..., TrainingCase]
# Layers, micro batches and CPU seconds from docs/planning.md, "Compile time".
MEASURED = [(36, 2, 725), (20, 8, 575), (20, 4, 515)]


@pytest.mark.parametrize(("layers", "micro_batches", "cpu_s"), MEASURED)
def test_measured_compiles_are_predicted(layers: int, micro_batches: int, cpu_s: float) -> None:
    assert predict_cpu_s(layers, micro_batches) == pytest.approx(cpu_s, rel=0.3)


def test_the_stage_with_most_layers_and_all_micro_batches_count(make_case: MakeCase) -> None:
    even = estimate_compile(make_case((1, 1, 2, 1), num_micro_batches=64), ())
    uneven = estimate_compile(make_case((1, 1, 2, 1), num_micro_batches=64, offset=[-1, 1]), ())
    fewer = estimate_compile(make_case((1, 1, 2, 1), num_micro_batches=2), ())
    assert uneven.cpu_s > even.cpu_s > fewer.cpu_s
    assert even.num_records == 0 and "run --compile once" in even.describe()


def test_the_estimate_is_scaled_to_this_machine(make_case: MakeCase) -> None:
    case = make_case((1, 1, 2, 1))
    records = [
        CompileRecord(num_layers=2, num_micro_batches=4, cpu_s=factor * predict_cpu_s(2, 4)) for factor in (2, 3, 30)
    ]
    found = estimate_compile(case, records)
    assert found.cpu_s == pytest.approx(3 * estimate_compile(case, ()).cpu_s)
    assert found.num_records == 3 and "scaled to 3 made with --compile on this machine" in found.describe()
    assert f"about {round(found.cpu_s / 60)} min" in found.describe()


def test_records_are_kept_and_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = find_compile_records()
    assert path.is_relative_to(tmp_path) and read_compile_records(path) == []
    records = [CompileRecord(num_layers=1, num_micro_batches=2, cpu_s=float(second)) for second in range(1, 61)]
    add_compile_records(path, records[:1])
    add_compile_records(path, records[1:])
    assert read_compile_records(path) == records[-MAX_RECORDS:]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"compiles": 3}', '{"compiles": [{"num_layers": 1}]}', "{"])
def test_a_damaged_file_counts_as_no_records(tmp_path: Path, text: str) -> None:
    path = tmp_path / "records.json"
    path.write_text(text, encoding="utf-8")
    assert read_compile_records(path) == []


def test_records_without_time_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    record = dataclasses.asdict(CompileRecord(num_layers=1, num_micro_batches=1, cpu_s=0.0))
    path.write_text(json.dumps({"compiles": [record]}), encoding="utf-8")
    assert read_compile_records(path) == []


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    record = CompileRecord(num_layers=1, num_micro_batches=1, cpu_s=1)
    with caplog.at_level(logging.WARNING):
        add_compile_records(tmp_path / "file" / "records.json", [record])
    assert "cannot be written" in caplog.text
