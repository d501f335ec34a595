"""Finds slow ranks from timings that all ranks exchange every few steps.

In synchronous training, all ranks take the same time per step because the fast ones wait. A slow rank shows up in work
that it does alone: a matrix product of fixed size, waiting for its data, and its work between two steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

WINDOW = 8
"""Exchanges that are judged together."""
MIN_PROBES = 16
"""Matrix products that are judged together. They are timed less often than the ranks exchange."""
MAX_LISTED = 16
COMPUTING, DATA, BETWEEN_STEPS = "computing", "data", "between steps"


@dataclass(frozen=True, kw_only=True)
class RankTimes:
    """One rank's mean times since the last exchange, in seconds."""

    step_s: float
    data_wait_s: float
    """Part of the step in which the rank waited for its batch; 0 with data sinking."""
    probe_s: float
    """A matrix product of the same size on every rank; 0 if none was timed."""
    late_s: float
    """How much shorter this rank waited in the collective than the one that waited longest: how late it arrived."""


class SlowRank(TypedDict):
    """A rank that was slower than the median of all ranks."""

    rank: int
    node: str
    cause: str
    """`computing`, `data` or `between steps`."""
    excess: float
    """Of the median of the probe (`computing`), otherwise of the step time: 0.5 is one half."""


@dataclass(frozen=True, kw_only=True)
class RanksRecord:
    """Times of all ranks over the last `WINDOW` exchanges, after `step` steps."""

    step: int
    num_ranks: int
    step_s: float
    """Medians over the ranks, in seconds."""
    data_wait_s: float
    probe_s: float
    late_s: float
    slow: list[SlowRank] = field(default_factory=list)
    """At most `MAX_LISTED`, the slowest first."""


class SlowRankDetector:
    """Judges the times of all ranks, `WINDOW` exchanges at a time.

    A single matrix product takes milliseconds and is disturbed by other processes, so the lower quartile of
    `MIN_PROBES` products is compared. A verdict holds until the next one.

    Args:
        max_excess: A rank is slow above this excess over the median of all ranks.
    """

    def __init__(self, max_excess: float) -> None:
        self._max_excess = max_excess
        self._window: list[list[RankTimes]] = []
        self._probes: list[list[float]] = []
        self._probe_s: list[float] = []

    def add(self, step: int, times: Sequence[RankTimes], node_names: Sequence[str]) -> RanksRecord | None:
        """Add the times from an exchange, one element per rank. Return a record when the window is full."""
        if not times:
            return None
        self._window.append(list(times))
        if all(one.probe_s for one in times):
            self._probes.append([one.probe_s for one in times])
        if len(self._probes) == MIN_PROBES:
            self._probe_s = [sorted(of_rank)[MIN_PROBES // 4] for of_rank in zip(*self._probes, strict=True)]
            self._probes.clear()
        if len(self._window) < WINDOW:
            return None
        ranks = [_average(of_rank) for of_rank in zip(*self._window, strict=True)]
        self._window.clear()
        step_s, data_s, late_s = (
            statistics.median_low(getattr(rank, name) for rank in ranks) for name in ("step_s", "data_wait_s", "late_s")
        )
        probe_s = statistics.median_low(self._probe_s) if self._probe_s else 0.0
        slow: list[SlowRank] = []
        for number, rank in enumerate(ranks):
            excesses = {
                COMPUTING: self._probe_s[number] / probe_s - 1 if probe_s else 0.0,
                DATA: (rank.data_wait_s - data_s) / step_s,
                BETWEEN_STEPS: (rank.late_s - late_s) / step_s,
            }
            for cause, excess in excesses.items():
                if excess > self._max_excess:
                    slow.append({"rank": number, "node": node_names[number], "cause": cause, "excess": excess})
        slow.sort(key=lambda one: -one["excess"])
        return RanksRecord(
            step=step,
            num_ranks=len(ranks),
            step_s=step_s,
            data_wait_s=data_s,
            probe_s=probe_s,
            late_s=late_s,
            slow=slow[:MAX_LISTED],
        )


class NewSlowRanks:
    """Finds slow ranks in a record that are not in the previous record."""

    def __init__(self) -> None:
        self._known: set[tuple[int, str]] = set()

    def describe(self, record: RanksRecord) -> list[str]:
        """Return a line for each rank that has become slow, or is slow for a new reason."""
        known = self._known
        self._known = {(one["rank"], one["cause"]) for one in record.slow}
        return [describe_slow(one) for one in record.slow if (one["rank"], one["cause"]) not in known]


def describe_slow(one: SlowRank) -> str:
    """Describe a slow rank in words."""
    what = {
        COMPUTING: f"computes {one['excess']:.0%} slower than the median rank",
        DATA: f"waits for data {one['excess']:.0%} of the step time longer than the median rank",
        BETWEEN_STEPS: f"arrives {one['excess']:.0%} of the step time later than the median rank",
    }[one["cause"]]
    return f"rank {one['rank']} (node {one['node']}) {what}"


@dataclass(frozen=True, kw_only=True)
class _MeanTimes:
    """Means of one rank over a window, in seconds."""

    step_s: float
    data_wait_s: float
    late_s: float


def _average(times: Sequence[RankTimes]) -> _MeanTimes:
    """Return the mean of each time, excluding its largest value, which a single hiccup can inflate."""

    def mean(name: str) -> float:
        return statistics.fmean(sorted(getattr(one, name) for one in times)[:-1])

    return _MeanTimes(step_s=mean("step_s"), data_wait_s=mean("data_wait_s"), late_s=mean("late_s"))
