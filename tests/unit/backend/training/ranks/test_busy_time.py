"""How busy the threads that were not started by Python are."""

from __future__ import annotations

import _thread
import threading
import time
from pathlib import Path

import pytest

from ascend_cpt.backend.training.ranks import busy_time
from ascend_cpt.backend.training.ranks.busy_time import THREADS, BusyTime

needs_statistics = pytest.mark.skipif(
    not (THREADS / f"{threading.main_thread().native_id}/schedstat").is_file(), reason="needs Linux's schedstat"
)


def write(folder: Path, **threads: tuple[int, int]) -> None:
    for name, (running_ns, waiting_ns) in threads.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "schedstat").write_text(f"{running_ns} {waiting_ns} 12\n", encoding="ascii")


def test_running_and_waiting_for_a_core_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(busy_time, "THREADS", tmp_path)
    monkeypatch.setattr("time.perf_counter", lambda: now)
    main = str(threading.main_thread().native_id)
    busy = BusyTime()
    write(tmp_path, **{main: (10**9, 0), "t1": (10**9, 10**9), "t2": (5, 5)})
    assert busy.measure()[0] == 0.0, "nothing to compare with"
    now = 110.0
    # A thread of Python does not count, one that has ended neither, and a new one from its start.
    (tmp_path / "t2/schedstat").unlink()
    write(tmp_path, **{main: (9 * 10**9, 0), "t1": (3 * 10**9, 5 * 10**9), "t3": (10**9, 0)})
    assert busy.measure()[0] == pytest.approx((2 + 4 + 1) / 10)


def test_without_statistics_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy_time, "THREADS", tmp_path / "none")
    clock = BusyTime()
    assert [clock.measure()[0], clock.measure()[0]] == [0.0, 0.0]


@needs_statistics
def test_a_thread_that_computes_is_busy_and_one_that_sleeps_is_not() -> None:
    for is_busy in (False, True):
        stops, ended = threading.Event(), _thread.allocate_lock()
        ended.acquire()

        def work(is_busy: bool = is_busy, stops: threading.Event = stops, ended: _thread.LockType = ended) -> None:
            while not stops.is_set():
                if not is_busy:
                    time.sleep(0.01)
            ended.release()

        clock = BusyTime()
        _thread.start_new_thread(work, ())  # not one of `threading.enumerate()`
        clock.measure()
        time.sleep(0.2)
        busy, cost_s = clock.measure()
        stops.set()
        ended.acquire()
        # Other native threads of this process may be busy too.
        assert busy > 0.7 if is_busy else busy < 0.5
        assert 0 < cost_s < 0.1
