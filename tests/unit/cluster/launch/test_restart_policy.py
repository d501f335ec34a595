from __future__ import annotations

from pathlib import Path

import pytest

from ascend_cpt.cluster.job.launcher_files import PROGRESS_FILE, STOP_FILE, read_step, report_own_stop, report_step
from ascend_cpt.cluster.launch.coordination.restart_policy import DONE, End, Outcome, RestartPolicy, count_memory_kills


def make_failure(step: int | None = None, end: End = End.FAILED) -> Outcome:
    return Outcome(end=end, code=1, reason="worker 0 failed", lines=("RuntimeError: bang",), step=step)


def test_without_restarts_the_first_failure_ends_the_job() -> None:
    decision = RestartPolicy(0, 5).decide(make_failure())
    assert (decision.again, decision.code, decision.message) == (False, 1, "")


@pytest.mark.parametrize(
    ("end", "code"), [(End.DONE, 0), (End.FINAL, 2), (End.FINAL, 1), (End.STOPPED, 143), (End.CANCELLED, 1)]
)
def test_only_crashes_are_restarted(end: End, code: int) -> None:
    decision = RestartPolicy(3, 5).decide(Outcome(end=end, code=code))
    assert (decision.again, decision.code) == (False, code)


def test_restarts_counted_by_another_node_count_even_above_the_limit() -> None:
    policy = RestartPolicy(2, 5)
    policy.count_earlier(6)
    decision = policy.decide(make_failure(step=3))
    assert (decision.again, decision.message) == (False, "no restart: the limit is reached (--max-restarts 2)")


def test_a_crash_is_restarted_until_the_number_is_used_up() -> None:
    policy = RestartPolicy(2, 5)
    assert policy.decide(make_failure(step=3)).message == "restart 1 of 2 in 5 s (last finished step: 3)"
    assert policy.decide(make_failure(step=4)).again
    decision = policy.decide(make_failure(step=5))
    assert (decision.again, decision.code, decision.message) == (
        False,
        1,
        "no restart: the limit is reached (--max-restarts 2)",
    )


@pytest.mark.parametrize(("step", "where"), [(12, "after step 12"), (None, "before its first step")])
def test_the_same_step_failing_again_ends_the_job(step: int | None, where: str) -> None:
    policy = RestartPolicy(9, 5)
    assert policy.decide(make_failure(step)).again
    decision = policy.decide(make_failure(step))
    assert not decision.again
    assert where in decision.message


def test_kills_do_not_count_as_failures_of_the_step() -> None:
    policy = RestartPolicy(9, 5)
    for _ in range(4):
        assert policy.decide(make_failure(step=3, end=End.KILLED)).again
    assert policy.decide(make_failure(step=3)).again
    assert not policy.decide(make_failure(step=3)).again


def test_the_delay_doubles_until_there_is_progress() -> None:
    policy = RestartPolicy(20, 5)
    steps = [None, None, None, 4, 4, 4, 9]
    delays_s = [policy.decide(make_failure(step, End.KILLED)).delay_s for step in steps]
    assert delays_s == [5, 10, 20, 5, 5, 10, 5]
    for _ in range(12):
        last = policy.decide(make_failure(None, End.KILLED))
    assert last.delay_s == 300


def test_restarts_that_another_node_counted_are_taken_over() -> None:
    policy = RestartPolicy(2, 5)
    policy.count_earlier(2)
    policy.count_earlier(1)
    assert not policy.decide(make_failure()).again


def test_success_ends_the_job() -> None:
    assert RestartPolicy(3, 5).decide(DONE).code == 0


def test_memory_kills_are_counted_by_the_kernel(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 1\noom_kill 3\nnr_unstable 0\n")
    assert count_memory_kills(vmstat) == 3
    assert count_memory_kills(tmp_path / "absent") == 0


def test_the_last_step_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "last_step"
    assert read_step(path) is None
    for step in (1, 20):
        report_step(step, {PROGRESS_FILE: str(path)})
        assert read_step(path) == step
    report_step(21, {})
    assert read_step(path) == 20
    assert [entry.name for entry in tmp_path.iterdir()] == ["last_step"]


def test_a_deliberate_stop_is_reported(tmp_path: Path) -> None:
    report_own_stop({})
    path = tmp_path / "stopped_itself"
    for _ in range(2):  # every rank reports it
        report_own_stop({STOP_FILE: str(path)})
    assert list(tmp_path.iterdir()) == [path]
