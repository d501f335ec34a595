"""Measures on a CPU how slowly this rank computes, from the scheduler's statistics of MindSpore's own threads.

A rank that waits for the others in a collective is not busy. The slowest rank waits least, so its threads are the
busiest: they run or wait for a core, because the core is slow, other programs use it, or a quota limits the process.
Time in which the whole process is suspended is not found.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

THREADS = Path("/proc/self/task")


class BusyTime:
    """Reads the statistics (Linux only) of all threads except Python's, which do not compute steps."""

    def __init__(self) -> None:
        self._threads_s: dict[str, float] = {}
        self._start_s = 0.0

    def measure(self) -> tuple[float, float]:
        """Return the threads' busy seconds per second since the last call, and the processor time that reading took.

        The first value is 0 for the first call, and if the kernel keeps no statistics.
        """
        start_s, cost_s = time.perf_counter(), -time.thread_time()
        before, self._threads_s = self._threads_s, _read_threads()
        busy_s = sum(value - before.get(thread, 0.0) for thread, value in self._threads_s.items())
        elapsed_s, self._start_s = start_s - self._start_s, start_s
        return (busy_s / elapsed_s if before else 0.0), cost_s + time.thread_time()


def _read_threads() -> dict[str, float]:
    """Return thread id → seconds in which it ran or waited for a core."""
    of_python = {str(thread.native_id) for thread in threading.enumerate()}
    found: dict[str, float] = {}
    for folder in THREADS.iterdir() if THREADS.is_dir() else ():
        if folder.name not in of_python:
            try:
                running, waiting, _ = (folder / "schedstat").read_text(encoding="ascii").split()
            except (OSError, ValueError):  # the thread has just ended
                continue
            found[folder.name] = (int(running) + int(waiting)) / 1e9
    return found
