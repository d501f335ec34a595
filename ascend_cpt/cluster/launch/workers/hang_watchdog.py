"""Detects that a node's workers no longer finish steps."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.cluster.job.launcher_files import activity_path

# A step may take this many times the recent median, for example because of a slow disk or a busy node.
STEP_FACTOR = 20
# Validation (with the compilation of its graph), saving and the work after the last step may take this many times the
# limit.
ACTIVITY_FACTOR = 6
RECENT_STEPS = 20
PERIOD_S = 0.5
# A launcher that was itself suspended for this long must not count that time.
MAX_GAP_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Hang:
    """No progress for longer than the limit. `activity` is empty during a step."""

    step: int
    activity: str
    waited_s: float
    limit_s: float

    def describe(self) -> str:
        """Return a description such as "no step for 1805 s after step 48 (limit 1800 s)"."""
        during = f" while {self.activity}" if self.activity else ""
        return f"no step for {self.waited_s:.0f} s after step {self.step}{during} (limit {self.limit_s:.0f} s)"


class HangWatchdog:
    """Watches the files in which a worker on this node reports its steps.

    Nothing is watched before the first step of an attempt, because compilation has no upper bound.

    Args:
        progress_file: File in which the worker reports its steps.
        timeout_s: Shortest time limit for a step, or 0 to disable the watchdog. The limit is `STEP_FACTOR` times the
            recent median if that is longer.
    """

    def __init__(self, progress_file: Path, timeout_s: float) -> None:
        self._files = (progress_file, activity_path(progress_file))
        self._timeout_s = timeout_s
        self._contents = ("", "")
        self._durations_s: deque[float] = deque(maxlen=RECENT_STEPS)
        self._last_change_s = self._last_check_s = -1.0

    def check(self, now_s: float) -> Hang | None:
        """Return a hang if there is one at `now_s` (monotonic clock). Reads the files at most once per `PERIOD_S`."""
        if not self._timeout_s or (self._last_check_s >= 0 and now_s - self._last_check_s < PERIOD_S):
            return None
        if self._last_check_s >= 0 and now_s - self._last_check_s > MAX_GAP_S:
            self._last_change_s += now_s - self._last_check_s
        self._last_check_s = now_s
        contents = tuple(path.read_text(encoding="ascii").strip() if path.exists() else "" for path in self._files)
        (step, activity), (old_step, old_activity) = contents, self._contents
        if contents != self._contents:
            if old_step and step != old_step and not (activity or old_activity):
                self._durations_s.append((now_s - self._last_change_s) / max(1, int(step) - int(old_step)))
            self._contents, self._last_change_s = (step, activity), now_s
        if not step:
            return None
        limit_s = self._timeout_s
        if activity:
            limit_s *= ACTIVITY_FACTOR
        elif self._durations_s:
            limit_s = max(limit_s, STEP_FACTOR * statistics.median(self._durations_s))
        waited_s = now_s - self._last_change_s
        if waited_s <= limit_s:
            return None
        return Hang(step=int(step), activity=activity, waited_s=waited_s, limit_s=limit_s)
