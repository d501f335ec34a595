"""Records what a run's reporting process does at every moment, in `timeline.jsonl` in the run folder.

Each line is an interval. A launch's intervals follow each other without gaps, so they add up to the wall time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE_NAME = "timeline.jsonl"
# Steps are written in batches. A process that is killed loses whatever it has not written.
WRITE_EVERY_S = 5.0
STEPS, FIRST_STEP, ENDING = "steps", "first_step", "ending"
PARTS = ("starting", "waiting", "validation", FIRST_STEP, STEPS, "saving", ENDING)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """What was done from `start_s` to `end_s` (seconds since the epoch)."""

    launch_s: float
    """Start of the process, which identifies the launch."""
    start_s: float
    end_s: float
    part: str
    """One of `PARTS`."""
    from_step: int
    """The step that the launch started from."""
    first_step: int = 0
    last_step: int = 0
    """Steps done, both included; 0 if none."""
    data_s: float = 0.0
    """Part of the time in which the steps waited for data."""
    cause: str = ""
    """In a launch's first interval: why the launcher restarted the job, if known."""
    skipped: Sequence[str] = ()
    """In a launch's first interval: why newer checkpoints than the one it resumed from could not be used."""
    error: str = ""
    """In a launch's last interval: the error with which it ended."""


class Timeline:
    """Writes the intervals of one launch.

    Args:
        path: The file, or None to write nothing.
        started_s: Start of the process in seconds since the epoch.
        from_step: The step from which the launch starts.
        cause: Why the launcher restarted the job, or "".
        skipped: Why newer checkpoints could not be used.
        read_clock: Returns the time in seconds since the epoch.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        started_s: float,
        from_step: int,
        cause: str = "",
        skipped: Sequence[str] = (),
        read_clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._launch_s, self._from_step, self._read_clock = path, started_s, from_step, read_clock
        self._last_s = started_s
        self._cause, self._skipped = cause, tuple(skipped)
        self._pending: Interval | None = None

    def end(self, part: str, *, at_s: float | None = None, step: int = 0, data_s: float = 0.0, error: str = "") -> None:
        """Record that the time since the last call, or since the start of the process, was spent on `part`.

        Args:
            part: One of `PARTS`.
            at_s: End of the interval in seconds since the epoch, by default now.
            step: The step that was done in the interval.
            data_s: The part of the interval spent waiting for data.
            error: The error with which the launch ends.
        """
        if self._path is None:
            return
        # The clock may be set back, but intervals must never overlap.
        end_s = max(self._last_s, self._read_clock() if at_s is None else at_s)
        pending = self._pending
        first, start_s = step, self._last_s
        if pending is not None and part == STEPS == pending.part and step == pending.last_step + 1:
            first, start_s, data_s = pending.first_step, pending.start_s, data_s + pending.data_s
            self._pending = None
        self.flush()
        self._pending = Interval(
            launch_s=self._launch_s,
            start_s=start_s,
            end_s=end_s,
            part=part,
            from_step=self._from_step,
            first_step=first,
            last_step=step,
            data_s=data_s,
            cause=self._cause,
            skipped=self._skipped,
            error=error,
        )
        self._cause, self._skipped = "", ()
        self._last_s = end_s
        if part != STEPS or end_s - start_s >= WRITE_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Append the intervals that are not written yet."""
        if self._pending is not None and self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self._pending)) + "\n")
        self._pending = None


NO_TIMELINE = Timeline(None, started_s=0.0, from_step=0)
"""Records nothing."""


def read_timeline(path: Path) -> list[Interval]:
    """Return all launches' intervals in order. Lines left incomplete by a crash are skipped."""
    return sorted(_read_lines(path), key=lambda interval: interval.start_s) if path.is_file() else []


def _read_lines(path: Path) -> Iterator[Interval]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                values: dict[str, Any] = json.loads(line)
                interval = Interval(**values)
                if interval.part in PARTS and interval.end_s >= interval.start_s:
                    yield interval
            except (ValueError, TypeError):
                continue
