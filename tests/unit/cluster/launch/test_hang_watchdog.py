"""The watchdog against hanging jobs, and the search for the worker that causes the hang."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ascend_cpt.cluster.job.launcher_files import PROGRESS_FILE, report_activity, report_step
from ascend_cpt.cluster.launch.workers import hang_diagnosis
from ascend_cpt.cluster.launch.workers.hang_diagnosis import (
    BUSY,
    EXTERNAL,
    SILENT,
    WAITING,
    describe_states,
    find_stopped,
    format_ranks,
    judge,
)
from ascend_cpt.cluster.launch.workers.hang_watchdog import ACTIVITY_FACTOR, MAX_GAP_S, STEP_FACTOR, HangWatchdog

THREADS = """\
Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait
Current thread 0x00007f02 (most recent call first):
  File "/venv/mindspore/common/tensor.py", line 10 in asnumpy
  File "/opt/ascend_cpt/backend/training/step_monitor.py", line 93 in on_train_step_end
  File "/opt/ascend_cpt/train.py", line 130 in main
"""
LOOP = 'Thread 0x00007f01 (most recent call first):\n  File "/opt/ascend_cpt/monitor/sinks.py", line 7 in write\n'


class Job:
    """Reports as a worker does, and checks once a second."""

    def __init__(self, folder: Path, timeout_s: float) -> None:
        self.environ = {PROGRESS_FILE: str(folder / "last_step")}
        self.watchdog = HangWatchdog(folder / "last_step", timeout_s)
        self.now_s = 0.0
        self.step = 0

    def wait(self, seconds: int) -> str | None:
        for _ in range(seconds):
            self.now_s += 1
            if hang := self.watchdog.check(self.now_s):
                return hang.describe()
        return None

    def train(self, num_steps: int, seconds_each: int = 1) -> str | None:
        for _ in range(num_steps):
            self.step += 1
            report_step(self.step, self.environ)
            if found := self.wait(seconds_each):
                return found
        return None


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path, timeout_s=10)


def test_a_job_without_progress_is_found_and_one_with_progress_is_not(job: Job) -> None:
    assert job.train(200) is None
    found = job.wait(100)
    assert found is not None and found.startswith("no step for 2") and "after step 200 (limit 20 s)" in found


def test_the_limit_follows_slow_steps(job: Job) -> None:
    assert job.train(20, seconds_each=8) is None
    assert job.wait(8 * STEP_FACTOR - 20) is None
    assert job.wait(40) is not None


def test_compilation_has_no_limit(job: Job) -> None:
    assert job.wait(10_000) is None
    report_activity("validating", job.environ)
    assert job.wait(10_000) is None


def test_work_between_steps_has_a_longer_limit_and_is_named(job: Job) -> None:
    job.train(5)
    report_activity("saving", job.environ)
    assert job.wait(10 * ACTIVITY_FACTOR - 2) is None
    found = job.wait(10)
    assert found is not None and "after step 5 while saving (limit 60 s)" in found


def test_time_in_work_between_steps_counts_neither_as_a_step_nor_as_waiting(job: Job) -> None:
    for _ in range(10):
        job.train(2)
        report_activity("saving", job.environ)
        job.wait(50)
        report_activity("", job.environ)
        assert job.wait(1) is None
    assert job.wait(10 + STEP_FACTOR) is not None, "the median is that of the short steps"


def test_zero_disables_it(tmp_path: Path) -> None:
    job = Job(tmp_path, timeout_s=0)
    job.train(3)
    assert job.wait(100_000) is None


def test_a_launcher_that_was_suspended_does_not_count_that_time(job: Job) -> None:
    job.train(5)
    job.now_s += 10 * MAX_GAP_S
    assert job.wait(5) is None


def test_states_of_workers() -> None:
    waiting = judge(0, psutil.STATUS_SLEEPING, THREADS)
    assert waiting.priority == WAITING
    assert waiting.text == (
        "waits for the others in asnumpy (common/tensor.py:10), "
        "called from on_train_step_end (training/step_monitor.py:93)"
    )
    running = judge(1, psutil.STATUS_SLEEPING, LOOP.replace("sinks.py", "api.py").replace("in write", "in _exec_pip"))
    assert running.priority == WAITING and running.text.startswith("runs the compiled graph, in _exec_pip")
    busy = judge(1, psutil.STATUS_RUNNING, LOOP)
    assert (busy.priority, busy.text) == (BUSY, "is in write (monitor/sinks.py:7)")
    assert judge(2, psutil.STATUS_STOPPED, "").priority == EXTERNAL
    silent = judge(3, psutil.STATUS_SLEEPING, "")
    assert (silent.priority, silent.text) == (SILENT, "did not write its stack")
    others = [judge(rank, psutil.STATUS_SLEEPING, THREADS) for rank in (4, 5, 7)]
    assert describe_states([busy, *others])[0] == "worker 1 is in write (monitor/sinks.py:7)"
    assert describe_states([busy, *others])[1].startswith("workers 4-5, 7 wait for the others in asnumpy")
    assert format_ranks([0]) == "worker 0"


def test_only_stopped_workers_are_found() -> None:
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleeps) as running, subprocess.Popen(sleeps) as stopped:
        try:
            stopped.send_signal(signal.SIGSTOP)
            while psutil.Process(stopped.pid).status() != psutil.STATUS_STOPPED:
                time.sleep(0.01)
            found = find_stopped({3: running.pid, 5: stopped.pid, 7: 2**22 + 1})
        finally:
            running.kill()
            stopped.kill()
    assert [(state.rank, state.text) for state in found] == [(5, "is stopped (SIGSTOP)")]


def test_a_process_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hang_diagnosis, "STACKS_WAIT_S", 0)
    states, causes = hang_diagnosis.diagnose({0: 2**22 + 1}, tmp_path)  # above the largest process id
    assert [state.text for state in causes] == ["has ended"] and states == causes
