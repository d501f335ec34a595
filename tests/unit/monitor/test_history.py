"""The history that a resumed run reads."""

from __future__ import annotations

import json
from pathlib import Path

from ascend_cpt.monitor.history import extend_layouts, read_history, read_values
from ascend_cpt.monitor.record import DataRecord, TaskRecord, ValidationRecord
from ascend_cpt.monitor.sinks import JsonlSink
from tests.unit.monitor.test_sinks import make_step


def write_run(path: Path, num_steps: int) -> None:
    sink = JsonlSink(path, 0)
    sink.write(ValidationRecord(step=0, name="code", loss=3.0, num_labels=10))
    for step in range(1, num_steps + 1):
        sink.write(make_step(step, loss=1 / step, skipped="loss spike" if step % 4 == 0 else ""))
        if step % 5 == 0:
            sink.write(DataRecord(step=step, tokens={"train": {"code": step}}, epochs={"code": 0.5}))
            sink.write(ValidationRecord(step=step, name="code", loss=2.0, num_labels=10))
            sink.write(TaskRecord(step=step, name="arc", metric="acc", score=0.5, num_items=9, values={"acc": 0.5}))
    sink.close()


def test_history_has_the_last_steps_and_all_validations_up_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_run(path, 20)
    history = read_history(path, 13, 4)
    assert [step["step"] for step in history.steps] == [10, 11, 12, 13]
    assert history.steps[0]["loss"] == 1 / 10
    assert [record["step"] for record in history.validations] == [0, 5, 10]
    assert [(record["step"], record["score"]) for record in history.tasks] == [(5, 0.5), (10, 0.5)]
    assert history.num_skipped == 3
    assert history.account is not None and history.account["tokens"] == {"train": {"code": 10}}


def test_new_run_and_missing_file_have_no_history(tmp_path: Path) -> None:
    history = read_history(tmp_path / "metrics.jsonl", 5, 4)
    assert (history.steps, history.validations, history.num_skipped) == ([], [], 0)


def test_resume_keeps_earlier_lines_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_run(path, 20)
    before = path.read_text(encoding="utf-8").splitlines()
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "step", "step": 21, "lo')
    JsonlSink(path, 13).close()
    assert path.read_text(encoding="utf-8").splitlines() == [line for line in before if json.loads(line)["step"] <= 13]


def test_values_of_a_set_and_of_a_task(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_run(path, 20)
    task = {"kind": "task", "step": 10, "metric": "acc", "num_items": 9, "values": {"acc": 0.5}}
    tasks = [
        {**task, "name": "exam", "score": 0.25, "higher_is_better": True},
        {**task, "name": "perplexity", "score": 9.0, "higher_is_better": False},
        {"kind": "validation", "step": 20, "name": "other", "loss": 1.0},
        {"kind": "validation", "step": 20, "name": "code", "loss": "nan"},
        {"kind": "validation", "step": 25, "name": "code", "loss": 1.5},
    ]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in tasks)
        file.write('{"kind": "validation", "step": 30, "na')
    # Of two records at a step the last one counts: NaN at step 20.
    assert read_values(path, "validation", "code") == {0: 3.0, 5: 2.0, 10: 2.0, 15: 2.0, 25: 1.5}
    assert read_values(path, "task", "exam") == {10: -0.25}
    assert read_values(path, "task", "perplexity") == {10: 9.0}
    assert read_values(tmp_path / "none", "task", "exam") == {}


def test_layouts_of_a_run_that_is_set_back() -> None:
    wide, narrow = {"data_parallel": 2}, {"data_parallel": 1}
    layouts = extend_layouts([], 0, wide)
    assert layouts == [{"step": 0, **wide}] == extend_layouts(layouts, 200, wide)
    layouts = extend_layouts(layouts, 200, narrow)
    assert layouts == [{"step": 0, **wide}, {"step": 200, **narrow}]
    assert extend_layouts(layouts, 200, narrow) == layouts, "a restart before the first step"
    assert extend_layouts(layouts, 300, wide) == [*layouts, {"step": 300, **wide}]
    assert extend_layouts(layouts, 300, {**narrow, "expert_parallel": 1}) == layouts, "of an earlier version"
    assert extend_layouts(layouts, 300, {**narrow, "expert_parallel": 2})[2]["expert_parallel"] == 2
    # No step of a later layout is kept.
    assert extend_layouts(layouts, 200, wide) == extend_layouts(layouts, 100, wide) == [{"step": 0, **wide}]
