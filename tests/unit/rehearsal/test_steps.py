"""The table of a rehearsal, and the comparison of its two runs."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.errors import CptError
from ascend_cpt.rehearsal import rehearse
from ascend_cpt.rehearsal.emulated_job import EmulatedJob, JobFailed
from ascend_cpt.rehearsal.steps import RehearsalFailed, StepList, render
from ascend_cpt.rehearsal.weights import write_random_folder
from ascend_cpt.weights.hf_folder import HfFolder
from tests.small_model import SMALL


def test_a_failed_step_ends_the_rehearsal() -> None:
    lines: list[str] = []
    steps = StepList(("one", "two", "three", "four"), lines.append)
    with steps.run("one") as step:
        step.difference = "1e-5"
    steps.skip("two", "there is none")
    with pytest.raises(RehearsalFailed, match="three: no port is free"), steps.run("three"):
        raise CptError("no port is free")
    assert [step.result for step in steps.steps] == ["passed", "skipped", "FAILED", "not run"] and not steps.passed
    table = render(steps.steps)
    assert "three: no port is free" in table and "two: there is none" in table
    assert lines[-1].startswith("three: FAILED")


def test_a_mistake_of_the_user_is_not_a_failed_rehearsal() -> None:
    steps = StepList(("build", "data"), print)
    with pytest.raises(CptError, match="g\\+\\+ not found") as caught, steps.run("build", is_preparation=True):
        raise CptError("g++ not found")
    assert not isinstance(caught.value, RehearsalFailed) and caught.value.exit_code == 2


def test_an_error_of_the_program_is_not_a_failed_step() -> None:
    steps = StepList(("one",), print)
    with pytest.raises(ZeroDivisionError), steps.run("one"):
        _ = 1 / 0
    assert not steps.passed


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({1: 2.0, 2: 2.5}, "step 2 : 2.500000, but 2.000000 on one device"),
        ({1: 2.0}, "records of steps"),
        ({1: 2.0, 2: math.nan}, "step 2 : nan"),
    ],
)
def test_other_losses_fail(found: dict[int, float], message: str) -> None:
    expected = {(1, ""): 2.0, (2, ""): 2.0}
    given = {(step, ""): loss for step, loss in found.items()}
    with pytest.raises(JobFailed, match=message):
        rehearse._check_losses(given, expected, 2, 0.1)
    assert rehearse._check_losses(expected, expected, 2, 0.1) == "0.0e+00"


def test_losses_are_read_by_step_and_set(tmp_path: Path) -> None:
    records = [
        {"kind": "step", "step": 1, "loss": 2.0, "total_steps": 9, "tokens": 8},
        {"kind": "validation", "step": 1, "name": "a", "loss": 3.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert rehearse.read_losses(tmp_path, "step") == {(1, ""): 2.0}
    assert rehearse.read_losses(tmp_path, "validation") == {(1, "a"): 3.0}


def test_difference_of_updates(tmp_path: Path) -> None:
    model = {**SMALL, "model_type": "llama", "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 128}
    model["architectures"] = ["LlamaForCausalLM"]
    for seed in (1, 2, 3):
        write_random_folder(model, tmp_path / str(seed), seed=seed)
    start, first, second = (tmp_path / str(seed) for seed in (1, 2, 3))
    assert rehearse.compare_updates(start, first, first).overall == 0
    assert rehearse.compare_updates(start, start, first).overall == pytest.approx(1.0)
    other = rehearse.compare_updates(start, second, first)
    assert other.overall == pytest.approx(1.0, rel=0.05)  # of independent weights
    assert other.worst > other.overall and other.worst_name in HfFolder(first).tensors
    assert np.isinf(rehearse.compare_updates(start, first, start).overall)


@pytest.mark.parametrize(
    ("overall", "worst", "message"),
    [
        (0.006, 0.03, None),
        (0.3, 0.4, "the weights differ from the run on one device by 0.30"),
        # The norms are a few of many weights: all of them may be wrong.
        (0.02, 1.0, "norm.weight differs from the run on one device by 1.00"),
        (math.inf, math.inf, "the weights differ"),
        (math.nan, 0.1, "the weights differ"),
    ],
)
def test_weights_differ_by_no_more_than_rounding(overall: float, worst: float, message: str | None) -> None:
    update = rehearse.UpdateDifference(overall=overall, worst=worst, worst_name="norm.weight")
    with pytest.raises(JobFailed, match=message) if message else contextlib.nullcontext():
        rehearse._check_update(update)


@pytest.mark.parametrize(
    ("console", "after", "message"),
    [
        ("start    continuing at step 2 from x", {1: 3.0, 2: 2.5, 3: 2.0}, None),
        ("start    weights of x", {1: 3.0, 2: 2.5, 3: 2.0}, "did not resume from step 2"),
        ("start    continuing at step 20 from x", {1: 3.0, 2: 2.5, 3: 2.0}, "did not resume from step 2"),
        ("start    continuing at step 2 from x", {1: 3.0, 2: 2.5, 3: 2.1}, r"losses of steps \[3\] changed"),
        ("start    continuing at step 2 from x", {1: 3.0, 3: 2.0}, r"losses of steps \[2\] changed"),
    ],
)
def test_a_resume_continues_what_was_killed(console: str, after: dict[int, float], message: str | None) -> None:
    before, found = (
        {(step, ""): loss for step, loss in losses.items()} for losses in ({1: 3.0, 2: 2.5, 3: 2.0}, after)
    )
    with pytest.raises(JobFailed, match=message) if message else contextlib.nullcontext():
        rehearse._check_resumed(console, 2, before, found)


def test_a_line_that_was_cut_by_the_kill_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "step", "step": 1, "loss": 2.0, "total_steps": 9, "tokens": 8}\n{"kind": "step", "st'
    )
    assert rehearse.read_losses(tmp_path, "step") == {(1, ""): 2.0}


def test_restarts_of_the_users_shell_do_not_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = tmp_path / "launcher.sh"
    launcher.write_text('echo "restarts $ASCEND_CPT_MAX_RESTARTS, port [$ASCEND_CPT_LAUNCHER_PORT]"')
    monkeypatch.setattr("ascend_cpt.rehearsal.emulated_job.LAUNCHER", str(launcher))
    monkeypatch.setenv("ASCEND_CPT_MAX_RESTARTS", "3")
    monkeypatch.setenv("ASCEND_CPT_LAUNCHER_PORT", "9000")
    job = EmulatedJob(tmp_path / "none.yaml", tmp_path / "job", workers=1, timeout_s=60)
    job.start()
    job.expect_success()
    assert job.read_console() == "restarts 0, port []\n"


def test_a_job_that_ends_before_its_checkpoint_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = tmp_path / "launcher.sh"
    launcher.write_text('echo "error: none.yaml: not found" >&2; exit 2\n')
    monkeypatch.setattr("ascend_cpt.rehearsal.emulated_job.LAUNCHER", str(launcher))
    job = EmulatedJob(tmp_path / "none.yaml", tmp_path / "job", workers=1, timeout_s=120)
    job.start()
    with pytest.raises(JobFailed, match=r"none.yaml"):
        job.kill_worker_after(1, "run")


def test_a_job_over_its_time_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = tmp_path / "launcher.sh"
    launcher.write_text("sleep 300\n")
    monkeypatch.setattr("ascend_cpt.rehearsal.emulated_job.LAUNCHER", str(launcher))
    job = EmulatedJob(tmp_path / "none.yaml", tmp_path / "job", workers=1, timeout_s=1)
    job.start()
    with pytest.raises(JobFailed, match="not finished after 1 s"):
        job.finish()
    assert all(launch.poll() is not None for launch in job._launches)
