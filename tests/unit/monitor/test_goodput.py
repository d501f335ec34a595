"""Goodput: every second of a run belongs to one category, over kills and restarts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from ascend_cpt.monitor.goodput.account import Goodput, compute_goodput
from ascend_cpt.monitor.goodput.restarts import find_restarts
from ascend_cpt.monitor.goodput.timeline import ENDING, FIRST_STEP, STEPS, WRITE_EVERY_S, Timeline, read_timeline


class Run:
    """A run with a clock of its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.now_s = path, 1e9
        self.timeline: Timeline

    def launch(
        self,
        from_step: int,
        *,
        starting_s: float = 10,
        compiling_s: float = 20,
        cause: str = "",
        skipped: tuple[str, ...] = (),
    ) -> None:
        self.timeline = Timeline(
            self.path,
            started_s=self.now_s,
            from_step=from_step,
            cause=cause,
            skipped=skipped,
            read_clock=lambda: self.now_s,
        )
        self.spend("starting", starting_s)
        self.step = from_step
        self.step += 1
        self.spend(FIRST_STEP, compiling_s + 1, step=self.step)

    def spend(self, part: str, seconds: float, **values: float | str) -> None:
        self.now_s += seconds
        self.timeline.end(part, **values)  # type: ignore[arg-type]

    def train(self, num_steps: int, *, data_s: float = 0.0) -> None:
        for _ in range(num_steps):
            self.step += 1
            self.spend(STEPS, 1, step=self.step, data_s=data_s)

    def account(self) -> Goodput:
        goodput = compute_goodput(read_timeline(self.path))
        assert goodput is not None
        return goodput


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "timeline.jsonl")


def test_restarts_with_their_causes(run: Run) -> None:
    run.launch(0)
    run.train(9)
    run.timeline.flush()
    assert find_restarts(read_timeline(run.path)) == []
    run.launch(5, cause="worker 1 was killed")
    run.timeline.flush()
    run.launch(4, cause="worker 1 was killed; then worker 0 failed", skipped=("iteration_5: damaged",))
    run.train(6)
    run.spend(ENDING, 1)
    run.launch(11)  # An orderly end is no interruption.
    run.train(1)
    run.timeline.flush()
    run.launch(12)
    run.spend(ENDING, 1, error="the disk is full")
    run.launch(12)
    found = find_restarts(read_timeline(run.path))
    assert [restart.is_interruption for restart in found] == [True, True, False, True, True]
    assert [restart.describe() for restart in found] == [
        "after step 10, resumed at step 5: worker 1 was killed",
        "after step 6, resumed at step 4: worker 0 failed; skipped a checkpoint: iteration_5: damaged",
        "after step 11, resumed at step 11: stopped normally",
        "after step 13, resumed at step 12: cause unknown, because the launcher ended as well",
        "after step 13, resumed at step 12: the disk is full",
    ]
    assert run.account().num_interruptions == 3


def test_an_undisturbed_run(run: Run) -> None:
    run.launch(0)
    run.train(49, data_s=0.1)
    run.spend("validation", 5)
    run.spend("saving", 3)
    run.spend(ENDING, 2)
    goodput = run.account()
    assert goodput.wall_s == pytest.approx(10 + 21 + 49 + 5 + 3 + 2)
    expected = {
        "steps": 50 - 4.9,
        "data": 4.9,
        "compiling": 20,
        "starting": 10,
        "validation": 5,
        "saving": 3,
        "ending": 2,
    }
    assert goodput.seconds == pytest.approx({**dict.fromkeys(goodput.seconds, 0.0), **expected})
    assert (goodput.num_launches, goodput.num_interruptions) == (1, 0)
    assert goodput.mean_recovery_s is None and goodput.mean_time_between_interruptions_s is None
    assert goodput.describe().startswith(
        "goodput 50.1% (compiling 22.2%, starting 11.1%, validation 5.6%, data wait 5.4%"
    )


def test_steps_after_the_checkpoint_of_a_restart_are_lost(run: Run) -> None:
    run.launch(0)
    run.train(29)
    run.timeline.flush()
    run.now_s += 60  # killed at step 30
    run.launch(20)
    run.train(19)
    run.spend(ENDING, 1)
    goodput = run.account()
    assert goodput.seconds["lost"] == pytest.approx(10)
    assert goodput.seconds["steps"] == pytest.approx(20 + 20)
    assert goodput.seconds["down"] == pytest.approx(60)
    assert sum(goodput.seconds.values()) == pytest.approx(goodput.wall_s)
    assert goodput.num_interruptions == 1
    assert goodput.mean_recovery_s == pytest.approx(60 + 10 + 21)
    assert goodput.mean_time_between_interruptions_s == pytest.approx(goodput.wall_s - 60)


def test_a_second_restart_from_an_older_checkpoint(run: Run) -> None:
    """What the second launch kept of the first one can still be lost."""
    for from_step, num_steps in ((0, 29), (20, 9), (10, 9)):
        run.launch(from_step)
        run.train(num_steps)
        run.timeline.flush()
    goodput = run.account()
    assert goodput.seconds["steps"] == pytest.approx(20)
    assert goodput.seconds["lost"] == pytest.approx(20 + 10)


def test_a_planned_stop_is_no_interruption(run: Run) -> None:
    run.launch(0)
    run.train(5)
    run.spend(ENDING, 1)
    run.now_s += 100
    run.launch(6)
    run.train(5)
    goodput = run.account()
    assert (goodput.num_launches, goodput.num_interruptions) == (2, 0)
    assert goodput.seconds["down"] == pytest.approx(100)
    assert goodput.seconds["lost"] == 0


def test_a_kill_loses_only_what_was_not_written(run: Run) -> None:
    run.launch(0)
    run.train(33)
    written = read_timeline(run.path)[-1].end_s
    assert run.now_s - written <= WRITE_EVERY_S


@pytest.mark.parametrize("seed", range(20))
def test_the_categories_sum_to_the_wall_time_for_any_history(seed: int, run: Run) -> None:
    generator = random.Random(seed)
    saved = 0
    for _ in range(generator.randrange(1, 6)):
        run.launch(saved, starting_s=generator.random() * 10, compiling_s=generator.random() * 10)
        for _ in range(generator.randrange(8)):
            run.train(generator.randrange(1, 20), data_s=generator.random())
            part = generator.choice(["validation", "saving", "waiting"])
            run.spend(part, generator.random() * 5)
            saved = run.step if part == "saving" else saved
            run.now_s += generator.choice((0, 0, -3))  # the clock is set back
        if generator.random() < 0.5:
            run.spend(ENDING, 1)
        run.now_s += generator.random() * 50 - 2
    goodput = run.account()
    assert sum(goodput.seconds.values()) == pytest.approx(goodput.wall_s, abs=1e-5)
    assert min(goodput.seconds.values()) >= -1e-9


def test_a_damaged_line_is_skipped_and_no_file_has_no_goodput(run: Run, tmp_path: Path) -> None:
    run.launch(0)
    run.spend(ENDING, 1)
    lines = run.path.read_text()
    run.path.write_text(lines + '{"launch_s": 1, "start_s"' + "\n[]\n" + json.dumps({"part": "steps"}) + "\n")
    assert len(read_timeline(run.path)) == lines.count("\n")
    assert compute_goodput(read_timeline(tmp_path / "none.jsonl")) is None
    Timeline(None, started_s=0, from_step=0).end(STEPS, step=1)
