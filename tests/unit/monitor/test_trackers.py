"""TensorBoard files, and W&B and SwanLab with fakes of their modules (the real ones are optional)."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ascend_cpt.monitor.record import DataRecord, Judged, TaskRecord, ValidationRecord, to_values
from ascend_cpt.monitor.trackers import EvaluationTrackers, choose_tracking_id, is_installed, open_trackers
from tests.unit.monitor.test_sinks import make_step


def parse_events(folder: Path) -> Iterator[Any]:
    """Yield the events of TensorBoard files, oldest first (records: 12 bytes, event, 4 bytes)."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.*"), key=lambda path: path.name):
        content, position = path.read_bytes(), 0
        while position < len(content):
            length = int.from_bytes(content[position : position + 8], "little")
            yield Event.FromString(content[position + 12 : position + 12 + length])
            position += length + 16


def read_values(event: Any) -> tuple[int, dict[str, float]]:
    return event.step, {value.tag: value.simple_value for value in event.summary.value}


def read_events(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return step and values of every event."""
    return [read_values(event) for event in parse_events(folder)]


def open_one(name: str, run_dir: Path, resume_step: int = 0) -> tuple[list[Any], list[str]]:
    warnings: list[str] = []
    sinks = open_trackers(
        (name,), run_dir, resume_step=resume_step, project="books", config={"model": "qwen3"}, warn=warnings.append
    )
    return sinks, warnings


def test_tensorboard_has_every_number(tmp_path: Path) -> None:
    (sink,), warnings = open_one("tensorboard", tmp_path)
    sink.write(make_step(1, loss=2.5, tflops_per_device=64.0))
    sink.write(ValidationRecord(step=1, name="code", loss=0.0, num_labels=10, bits_per_byte=0.5))
    sink.write(TaskRecord(step=1, name="arc", metric="acc", score=0.5, num_items=9, values={"acc": 0.5, "f1": 0.25}))
    sink.write(DataRecord(step=1, tokens={"a": {"web": 10}, "b": {"web": 5}}, epochs={"web": 0.5}))
    sink.close()
    step, validation, task, data = (values for step, values in read_events(tmp_path / "tensorboard") if step == 1)
    assert step["train/loss"] == 2.5 and step["speed/tokens_per_s"] == 2048 and "speed/mfu" not in step
    assert validation == {
        "validation/code/loss": 0.0, "validation/code/perplexity": 1.0, "validation/code/bits_per_byte": 0.5
    }  # fmt: skip
    assert step["speed/tflops_per_device"] == 64 and task == {"task/arc/acc": 0.5, "task/arc/f1": 0.25}
    assert data == {"tokens/web": 15.0, "epochs/web": 0.5} and not warnings


def test_tensorboard_hides_steps_repeated_by_a_resume(tmp_path: Path) -> None:
    (sink,), _ = open_one("tensorboard", tmp_path, resume_step=7)
    sink.write(make_step(8))
    sink.close()
    # TensorBoard drops earlier events from the first step of a new session on.
    assert [step for step, _ in read_events(tmp_path / "tensorboard")][1:] == [8, 8, 8]


class FakeService:
    """Fake of the modules wandb and swanlab."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.Settings = lambda **settings: SimpleNamespace(**settings)

    def init(self, **settings: Any) -> FakeService:
        self.settings = settings
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.logged.append((-1, {}))


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_services_get_finite_numbers_and_keep_the_run_id(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeService()
    monkeypatch.setitem(sys.modules, name, service)  # type: ignore[arg-type]
    run_dir = tmp_path / "run1"
    run_dir.mkdir()
    (sink,), _ = open_one(name, run_dir)
    sink.write(ValidationRecord(step=3, name="code", loss=float("nan"), num_labels=10, bits_per_byte=1.0))
    sink.close()
    assert service.logged == [(3, {"validation/code/bits_per_byte": 1.0}), (-1, {})]
    assert (service.settings["project"], service.settings["name"]) == ("books", "run1")
    first = service.settings["id"]
    open_one(name, run_dir, resume_step=3)
    assert service.settings["id"] == first
    open_one(name, run_dir)
    assert service.settings["id"] != first, "a new run in the same folder gets a new id"


HELD = [ValidationRecord(step=step, name="held", loss=step / 8, num_labels=3, bits_per_byte=0.5) for step in (4, 8, 12)]


def append(run_dir: Path, *records: Judged) -> None:
    with (run_dir / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(to_values(record)) + "\n" for record in records)


def track(run_dir: Path, *updates: Judged) -> list[str]:
    """Follow a run: copy what is there, then each of the records; return the warnings."""
    console = io.StringIO()
    trackers = EvaluationTrackers(run_dir, console)
    trackers.update()
    for record in updates:
        append(run_dir, record)
        trackers.update()
    trackers.close()
    return console.getvalue().splitlines()


def name_trackers(run_dir: Path, *sinks: str) -> None:
    run_dir.mkdir(exist_ok=True)
    info = {"trackers": {"sinks": sinks, "project": "books"}}
    (run_dir / "run.json").write_text(json.dumps(info), encoding="utf-8")


def read_evaluations(run_dir: Path) -> list[tuple[int, dict[str, float]]]:
    """Return what TensorBoard shows: a new session drops the earlier events from its first step on."""
    from tensorboardX.proto.event_pb2 import SessionLog

    shown: list[tuple[int, dict[str, float]]] = []
    for event in parse_events(run_dir / "tensorboard/evaluate"):
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            shown = [one for one in shown if one[0] < event.step]
        if event.summary.value:
            shown.append(read_values(event))
    return shown


def test_evaluations_are_in_tensorboard_once_after_every_start(tmp_path: Path) -> None:
    name_trackers(tmp_path, "tensorboard")
    score = TaskRecord(step=4, name="arc", metric="acc", score=0.5, num_items=9, values={"acc": 0.5})
    assert not track(tmp_path, HELD[0], score)
    held = {
        "validation/held/loss": 0.5,
        "validation/held/perplexity": math.exp(0.5),
        "validation/held/bits_per_byte": 0.5,
    }
    assert read_evaluations(tmp_path) == [(4, pytest.approx(held)), (4, {"task/arc/acc": 0.5})]
    append(tmp_path, HELD[1])  # killed before the trackers got it
    assert not track(tmp_path, HELD[2])
    assert not track(tmp_path)
    assert [step for step, _ in read_evaluations(tmp_path)] == [4, 4, 8, 12]
    assert not list((tmp_path / "tensorboard").glob("events.*")), (
        "TensorBoard would read no more of the training's file"
    )


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_evaluations_are_logged_once_to_a_run_of_their_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeService()
    monkeypatch.setitem(sys.modules, name, service)  # type: ignore[arg-type]
    run_dir = tmp_path / "run1"
    name_trackers(run_dir, name)
    track(run_dir, HELD[0])
    first = service.settings["id"]
    assert (service.settings["name"], service.settings["project"]) == ("run1-evaluate", "books")
    append(run_dir, HELD[1])
    track(run_dir, HELD[2])
    assert service.settings["id"] == first
    assert [step for step, _ in service.logged] == [4, -1, 8, 12, -1]
    service.settings = {}
    track(run_dir)
    assert not service.settings, "nothing is opened without a new record"


def test_trackers_of_a_run_without_the_record_of_them(tmp_path: Path) -> None:
    track(tmp_path, HELD[0])
    assert not (tmp_path / "tensorboard").exists()
    (tmp_path / "tensorboard").mkdir()
    track(tmp_path)
    assert [step for step, _ in read_evaluations(tmp_path)] == [4]


def test_evaluation_goes_on_without_a_tracker_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    name_trackers(tmp_path, "wandb", "tensorboard")
    (warning,) = track(tmp_path, *HELD)
    assert "wandb cannot be used in this launch" in warning
    assert [step for step, _ in read_evaluations(tmp_path)] == [4, 8, 12]


def test_tracker_that_cannot_be_opened_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    sinks, warnings = open_one("wandb", tmp_path)
    assert not sinks and len(warnings) == 1 and "wandb cannot be used in this launch" in warnings[0]


def test_tracking_id_is_new_without_its_file(tmp_path: Path) -> None:
    assert len(choose_tracking_id(tmp_path / ".wandb_id", 5)) == 21


def test_is_installed() -> None:
    assert is_installed("tensorboard")


@pytest.mark.parametrize(
    ("name", "files"), [("wandb", "wandb/offline-run-*/run-*.wandb"), ("swanlab", "swanlab/run-*/*")]
)
def test_real_packages_resume_a_run(name: str, files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv(f"{name.upper()}_MODE", "offline")
    for resume_step in (0, 3):
        sinks, warnings = open_one(name, tmp_path, resume_step)
        assert not warnings
        for step in range(resume_step + 1, resume_step + 4):
            sinks[0].write(make_step(step))
        sinks[0].close()
    runs = {path.parent.name.rsplit("-", 1)[-1] for path in tmp_path.glob(files)}
    assert len(runs) == 1, "both launches log to one run"
