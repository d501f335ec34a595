"""Measures each part of the time from the start of a process to the end of its first step."""

from __future__ import annotations

import time

import psutil

from ascend_cpt.monitor.goodput.start import StartRecord

PARTS = ("import", "data", "weights", "validation", "compile")


class StartClock:
    """Adds up the time of each part.

    Args:
        started_s: Start of the process, in seconds since the epoch. By default, the time that the kernel recorded.
    """

    def __init__(self, started_s: float | None = None) -> None:
        self.last_s = psutil.Process().create_time() if started_s is None else started_s
        """End of the last part, at first the start of the process."""
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def end(self, part: str) -> None:
        """Add the time since the last call, or since the start of the process, to one of the parts."""
        now_s = time.time()
        self._seconds[part] += max(0.0, now_s - self.last_s)
        self.last_s = now_s

    def make_record(self, step: int) -> StartRecord:
        """Return a record of the parts so far; `step` is the launch's first step."""
        seconds = self._seconds
        return StartRecord(
            step=step,
            total_s=sum(seconds.values()),
            import_s=seconds["import"],
            data_s=seconds["data"],
            weights_s=seconds["weights"],
            validation_s=seconds["validation"],
            compile_s=seconds["compile"],
        )
