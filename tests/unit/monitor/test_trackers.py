"""TensorBoard files, and W&B and SwanLab with fakes of their modules (the real ones are optional)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ascend_cpt.monitor.record import DataRecord, TaskRecord, ValidationRecord
from ascend_cpt.monitor.trackers import choose_tracking_id, is_installed, open_trackers
from tests.unit.monitor.test_sinks import make_step


def read_events(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return step and values of every event in TensorBoard files, oldest first (records: 12 bytes, event, 4 bytes)."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted(folder.glob("events.*"), key=lambda path: path.name):
        content, position = path.read_bytes(), 0
        while position < len(content):
            length = int.from_bytes(content[position : position + 8], "little")
            event = Event.FromString(content[position + 12 : position + 12 + length])
            events.append((event.step, {value.tag: value.simple_value for value in event.summary.value}))
            position += length + 16
    return events


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
