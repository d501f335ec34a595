"""Stored results of a sweep, their continuation, table and picture."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import pytest

from ascend_cpt.config.monitoring_schema import ValidationSetConfig
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.errors import CheckpointError, ConfigError
from ascend_cpt.monitor.record import Judged, TaskRecord, ValidationRecord
from ascend_cpt.run.evaluation.command_line import collect_settings
from ascend_cpt.run.evaluation.plan import EvaluationSettings
from ascend_cpt.run.merging.command_line import Order, parse_arguments
from ascend_cpt.run.merging.picture import draw_sweep
from ascend_cpt.run.merging.results import SweepResults, choose_general, make_table

REFERENCE = Path(__file__).resolve().parents[3] / "reference"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    shutil.copytree(REFERENCE / "merge", tmp_path / "models")
    return tmp_path / "models"


def make_order(models: Path, values: str = "0,0.5,1", *options: str) -> Order:
    task = f"facts=multiple_choice:{REFERENCE / 'tasks/plain_choices.jsonl'}"
    weights = ["--model", f"{models}/base=1-w", "--model", f"{models}/continued=w"]
    return parse_arguments(
        "", ["out", "--method", "linear", *weights, "--sweep", f"w={values}", "--task", task, *options]
    )


def make_settings(order: Order) -> EvaluationSettings:
    return collect_settings(order.args, None)


def make_records(general: float, domain: float, score: float = 0.5) -> list[Judged]:
    losses = {"general": general, "domain": domain}
    sets: list[Judged] = [ValidationRecord(step=0, name=n, loss=loss, num_labels=10) for n, loss in losses.items()]
    values = {"acc": score}
    return [*sets, TaskRecord(step=0, name="facts", metric="acc", score=score, num_items=4, values=values)]


def test_finished_values_are_not_repeated(models: Path, tmp_path: Path) -> None:
    order = make_order(models)
    results = SweepResults(tmp_path, order, make_settings(order))
    assert results.list_pending() == [0.0, 0.5, 1.0]
    results.add(0.5, make_records(3.1, 2.9))
    again = SweepResults(tmp_path, order, make_settings(order))
    assert again.list_pending() == [0.0, 1.0] and again.points == results.points
    again.add(0.0, make_records(3.0, math.nan))
    assert [point.value for point in again.points] == [0.0, 0.5]
    more = make_order(models, "0.25,0.5")
    assert SweepResults(tmp_path, more, make_settings(more)).list_pending() == [0.25]
    stored = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    assert stored["variable"] == "w" and stored["points"][0]["records"][0]["loss"] == 3.1


def test_results_of_another_sweep_are_not_continued(models: Path, tmp_path: Path) -> None:
    order = make_order(models)
    SweepResults(tmp_path, order, make_settings(order)).add(0.0, make_records(3.0, 3.0))
    before = (tmp_path / "sweep.json").read_bytes()
    for options in (
        ["--max-rows", "3"],
        ["--no-normalize"],
        ["--out-dtype", "float16"],
        ["--like", f"{models}/continued"],
    ):
        other = make_order(models, "0,1", *options)
        with pytest.raises(ConfigError, match=r"sweep\.json: from another sweep \(.*give another TARGET"):
            SweepResults(tmp_path, other, make_settings(other))
    weights = models / "continued/model.safetensors"
    os.utime(weights, ns=(1, 1))
    with pytest.raises(ConfigError, match="model.safetensors"):
        SweepResults(tmp_path, order, make_settings(order))
    assert (tmp_path / "sweep.json").read_bytes() == before
    (tmp_path / "sweep.json").write_bytes(before[:-20])
    with pytest.raises(CheckpointError, match="remove it to start the sweep again"):
        SweepResults(tmp_path, order, make_settings(order))


def test_sets_that_measure_forgetting(models: Path) -> None:
    settings = make_settings(make_order(models))
    sets = {name: ValidationSetConfig(path="x") for name in ("code", "general")}
    task = TaskConfig(path="x", kind="multiple_choice")
    plain = dataclasses.replace(settings, sets=sets, tasks={"mmlu": task})
    assert choose_general(plain, []) == ("general",)
    assert choose_general(plain, ["mmlu", "code"]) == ("mmlu", "code")
    guarded = dataclasses.replace(sets["code"], max_increase=0.1)
    guarded_task = dataclasses.replace(task, max_drop=0.1)
    both = dataclasses.replace(settings, sets={**sets, "code": guarded}, tasks={"mmlu": guarded_task})
    assert choose_general(both, []) == ("code", "mmlu")
    assert choose_general(settings, []) == ()
    with pytest.raises(
        ConfigError, match="--general prose: not among the evaluated sets and tasks: code, general, mmlu"
    ):
        choose_general(plain, ["prose"])


def test_table_and_gains(models: Path, tmp_path: Path) -> None:
    order = make_order(models)
    results = SweepResults(tmp_path, order, make_settings(order))
    results.add(1.0, make_records(3.5, 2.0, 0.75))
    results.add(0.0, make_records(3.0, 3.0, 0.5))
    first, last = results.points
    assert make_table("w", results.points).splitlines() == [
        "| w | general loss | domain loss | facts acc |",
        "| --- | --- | --- | --- |",
        "| 0 | 3.0000 | 3.0000 | 0.5000 |",
        "| 1 | 3.5000 (+0.5000) | 2.0000 (-1.0000) | 0.7500 (+0.2500) |",
    ]
    assert last.gain(first, ["domain"]) == 1.0 and last.gain(first, ["general"]) == -0.5
    assert last.gain(first, ["facts"]) == 0.25  # higher is better
    assert last.gain(first, ["domain", "facts"]) == 1.0  # losses and scores are not added
    assert first.gain(first, ["domain", "general"]) == 0.0


def test_picture(models: Path, tmp_path: Path) -> None:
    order = make_order(models)
    results = SweepResults(tmp_path, order, make_settings(order))
    for value in (0.0, 0.5, 1.0):
        results.add(value, make_records(3 + value, 3 - value))
    sizes = []
    for general in (["general"], []):
        path = tmp_path / "sweep.png"
        assert draw_sweep("w", results.points, general, path, title="linear") is bool(general)
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        sizes.append(int.from_bytes(content[16:20], "big"))
    assert sizes[0] > 1.4 * sizes[1]  # one more panel
