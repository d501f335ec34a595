"""Goodput: the share of a run's wall time spent on steps that the run kept."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ascend_cpt.monitor.goodput.timeline import ENDING, FIRST_STEP, STEPS, Interval
from ascend_cpt.monitor.sinks import format_duration

# In display order.
CATEGORIES = {
    "steps": "steps that the run kept",
    "data": "waiting for data",
    "lost": "steps computed again after a restart",
    "compiling": "compiling",
    "starting": "starting",
    "waiting": "waiting for the other processes",
    "validation": "validation",
    "saving": "saving",
    "ending": "ending",
    "down": "not running",
}


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """A breakdown of a run's wall time over all its launches."""

    wall_s: float
    """From the start of the first launch to the last record, in seconds."""
    seconds: dict[str, float]
    """Category → seconds; the sum is `wall_s`."""
    num_launches: int
    num_interruptions: int
    """Launches that did not end in an orderly way and were followed by another one."""
    mean_time_between_interruptions_s: float | None
    """Time in which the run was up, per interruption; None without one."""
    mean_recovery_s: float | None
    """Mean time from an interruption to the end of the first step after it; None without one."""

    @property
    def share(self) -> float:
        """Goodput, 0 to 1."""
        return self.seconds["steps"] / self.wall_s if self.wall_s else 0.0

    def describe(self) -> str:
        """Return one line: goodput, and the other categories with more than 0.05 % of the time."""
        shares = {name: seconds / self.wall_s if self.wall_s else 0.0 for name, seconds in self.seconds.items()}
        others = sorted((name for name in shares if name != "steps"), key=lambda name: -shares[name])
        parts = [f"{_LABELS.get(name, name)} {shares[name]:.1%}" for name in others if shares[name] >= 0.0005]
        return f"goodput {self.share:.1%}" + (f" ({', '.join(parts)})" if parts else "")

    def describe_interruptions(self) -> str:
        """Describe the interruptions: their number, the time between them and the recovery time. Return "" if none."""
        between, recovery = self.mean_time_between_interruptions_s, self.mean_recovery_s
        if between is None:
            return ""
        text = f"{self.num_interruptions}, {format_duration(between)} between them on average"
        return text if recovery is None else f"{text}, {format_duration(recovery)} until the first step after one"


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """A launch that crashed, was killed or ended with an error, and was followed by another one."""

    end_s: float
    """The last record of the interrupted launch, in seconds since the epoch."""
    last_step: int
    """The last step that the interrupted launch recorded, 0 if none."""
    from_step: int
    """The step from which the next launch continued."""
    cause: str
    """The error of the launch, or the cause that the launcher found, or "" if neither is known."""
    skipped: tuple[str, ...]
    """Why newer checkpoints could not be used."""

    def describe(self) -> str:
        """Return one line."""
        lines = [self.cause or UNKNOWN_CAUSE, *(f"skipped a checkpoint: {line}" for line in self.skipped)]
        return f"after step {self.last_step}, resumed at step {self.from_step}: {'; '.join(lines)}"


UNKNOWN_CAUSE = "cause unknown, because the launcher ended as well"


def list_interruptions(intervals: Sequence[Interval]) -> list[Interruption]:
    """Return a run's interruptions in order, from its launches' intervals."""
    ordered = _group_by_launch(intervals)
    return [
        Interruption(
            end_s=launch[-1].end_s,
            last_step=max(launch[0].from_step, *(interval.last_step for interval in launch)),
            from_step=following[0].from_step,
            # The launcher repeats a cause that it cannot know to be recorded.
            cause=launch[-1].error or following[0].cause.removeprefix(f"{launch[0].cause}; then "),
            skipped=tuple(following[0].skipped),
        )
        for launch, following in itertools.pairwise(ordered)
        if launch[-1].part != ENDING or launch[-1].error
    ]


def _group_by_launch(intervals: Sequence[Interval]) -> list[list[Interval]]:
    launches: dict[float, list[Interval]] = {}
    for interval in intervals:
        launches.setdefault(interval.launch_s, []).append(interval)
    return [launches[key] for key in sorted(launches)]


_LABELS = {"lost": "lost steps", "data": "data wait", "down": "not running"}


def compute_goodput(intervals: Sequence[Interval]) -> Goodput | None:
    """Return a run's goodput from its launches' intervals, in order, or None if there are none."""
    if not intervals:
        return None
    ordered = _group_by_launch(intervals)
    seconds = dict.fromkeys(CATEGORIES, 0.0)
    recoveries = []
    end_s = ordered[0][0].start_s
    for index, launch in enumerate(ordered):
        seconds["down"] += max(0.0, launch[0].start_s - end_s)
        later = [following[0].from_step for following in ordered[index + 1 :]]
        step_s = _find_step_time(launch) or _find_step_time(intervals) or 0.0
        for interval in launch:
            # Two processes can overlap if the new one started while the old one was ending.
            start_s = max(end_s, interval.start_s)
            length_s = max(0.0, interval.end_s - start_s)
            _add(seconds, interval, length_s, kept_until=min(later, default=None), step_s=step_s)
            end_s = max(end_s, interval.end_s)
        if later and launch[-1].part != ENDING:
            restarted = next((item.end_s for item in ordered[index + 1] if item.part == FIRST_STEP), None)
            recoveries.append(None if restarted is None else restarted - launch[-1].end_s)
    wall_s = end_s - ordered[0][0].start_s
    done = [seconds for seconds in recoveries if seconds is not None]
    return Goodput(
        wall_s=wall_s,
        seconds=seconds,
        num_launches=len(ordered),
        num_interruptions=len(recoveries),
        mean_time_between_interruptions_s=(wall_s - seconds["down"]) / len(recoveries) if recoveries else None,
        mean_recovery_s=statistics.mean(done) if done else None,
    )


def _add(
    seconds: dict[str, float], interval: Interval, length_s: float, *, kept_until: int | None, step_s: float
) -> None:
    if interval.part not in (STEPS, FIRST_STEP):
        seconds[interval.part] += length_s
        return
    working_s = length_s
    if interval.part == FIRST_STEP:
        working_s = min(length_s, step_s)
        seconds["compiling"] += length_s - working_s
    num_steps = interval.last_step - interval.first_step + 1
    num_kept = num_steps if kept_until is None else min(num_steps, max(0, kept_until - interval.first_step + 1))
    share = num_kept / num_steps
    data_s = min(interval.data_s, working_s) if interval.part == STEPS else 0.0
    seconds["lost"] += working_s * (1 - share)
    seconds["data"] += data_s * share
    seconds["steps"] += (working_s - data_s) * share


def _find_step_time(intervals: Sequence[Interval]) -> float | None:
    """Return the median step time in seconds, excluding first steps, or None if there are no others."""
    times = [
        (interval.end_s - interval.start_s) / (interval.last_step - interval.first_step + 1)
        for interval in intervals
        if interval.part == STEPS
    ]
    return statistics.median(times) if times else None
