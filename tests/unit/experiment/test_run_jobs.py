"""The runner, with processes that write what run_cpt.py writes."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from ascend_cpt.experiment.jobs import Job
from ascend_cpt.experiment.run_jobs import Runner

TRAIN = """
import json, os, pathlib, sys, time
folder, code, seconds = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
folder.mkdir(exist_ok=True)
with (folder / "started").open("a") as file:
    file.write("x")
(folder / "pid").write_text(str(os.getpid()))
time.sleep(seconds)
if code:
    print("INFO: reading")
    print("error: the disk is full")
    sys.exit(code)
step = {"kind": "step", "step": 1, "total_steps": 1, "tokens": 10, "loss": 1.0}
validations = [{"kind": "validation", "step": number, "name": "code", "loss": 1.0} for number in (0, 1)]
with (folder / "metrics.jsonl").open("w") as file:
    file.writelines(json.dumps(record) + "\\n" for record in (validations[0], step, validations[1]))
"""


@dataclass(frozen=True, kw_only=True)
class ScriptJob(Job):
    """A job that runs `TRAIN`."""

    code: int = 0
    seconds: float = 0.0

    def make_command(self, folder: Path, num_threads: int) -> list[str]:
        return [sys.executable, "-c", TRAIN, str(folder / self.name), str(self.code), str(self.seconds)]


def make(name: str, needs: str | None = None, *, code: int = 0, seconds: float = 0.0) -> ScriptJob:
    return ScriptJob(
        name=name, variant=name, seed=1, needs=needs, config="", overrides={}, tokens=10, code=code, seconds=seconds
    )


def count_starts(folder: Path, name: str) -> int:
    path = folder / name / "started"
    return len(path.read_text()) if path.is_file() else 0


def test_complete_runs_are_reused(tmp_path: Path) -> None:
    lines: list[str] = []
    jobs = [make("base"), make("one", "base")]
    for _ in range(2):
        runner = Runner(tmp_path, 1, lines.append)
        runner.run(jobs)
        assert not runner.failed
    assert [count_starts(tmp_path, name) for name in ("base", "one")] == [1, 1]
    assert "complete: 0, to train: 2" in lines[0]
    assert "ETA" in lines[1] and "ETA" not in lines[2]
    assert "complete: 2, to train: 0" in lines[-1]


def test_a_failed_run_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    lines: list[str] = []
    runner = Runner(tmp_path, 1, lines.append)
    runner.run([make("base"), make("bad", "base", code=3), make("good", "base")])
    assert list(runner.failed) == ["bad"]
    assert runner.failed["bad"].startswith("error: the disk is full; see ")
    assert count_starts(tmp_path, "good") == 1
    runner = Runner(tmp_path, 1, lines.append)
    runner.run([make("base"), make("bad", "base"), make("good", "base")])
    assert not runner.failed and count_starts(tmp_path, "bad") == 2, "a failed run is trained again"


def test_runs_of_a_failed_base_are_not_started(tmp_path: Path) -> None:
    runner = Runner(tmp_path, 2, lambda line: None)
    runner.run([make("base", code=1), make("one", "base")])
    assert runner.failed["one"].startswith("its base failed: error: the disk is full")
    assert count_starts(tmp_path, "one") == 0


def test_a_run_waits_for_its_base(tmp_path: Path) -> None:
    order: list[str] = []
    Runner(tmp_path, 3, order.append).run([make("base", seconds=0.5), make("one", "base"), make("other")])
    assert [line.split(" ")[1] for line in order[1:]] == ["other,", "base,", "one,"]


def test_an_interrupt_stops_the_running_job(tmp_path: Path) -> None:
    pid = tmp_path / "long" / "pid"

    def interrupt(line: str) -> None:
        if line.startswith("1/"):
            while not pid.is_file() or not pid.read_text():
                time.sleep(0.01)
            raise KeyboardInterrupt

    start_s = time.monotonic()
    runner = Runner(tmp_path, 2, interrupt)
    try:
        runner.run([make("short"), make("long", seconds=60)])
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("the interrupt was lost")
    assert time.monotonic() - start_s < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
