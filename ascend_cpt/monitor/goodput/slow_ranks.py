"""Finds slow ranks from timings that all ranks exchange every few steps.

In synchronous training, all ranks take the same time per step because the fast ones wait. A slow rank shows up in what
it does alone: computing, waiting for its data, and its work between two steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

WINDOW = 8
"""Exchanges that are judged together."""
NUM_MEASUREMENTS = 16
"""Measurements of computing that are judged together. There may be fewer than exchanges."""
NUM_EXCEPTIONS = 2
"""Measurements of these in which a slow rank may be as fast as the others."""
MAX_LISTED = 16
COMPUTING, DATA, BETWEEN_STEPS = "computing", "data", "between steps"


@dataclass(frozen=True, kw_only=True)
class RankTimes:
    """One rank's mean times since the last exchange, in seconds."""

    step_s: float
    data_wait_s: float
    """Part of the step in which the rank waited for its batch; 0 with data sinking."""
    computing_s: float
    """How slowly the rank computes; 0 if it was not measured. Only the ratio between ranks has a meaning.

    On an NPU, the time of a matrix product of the same size on every rank. On a CPU, the seconds per second in which
    the computing threads run or wait for a core, summed over the threads.
    """
    late_s: float
    """How much shorter this rank waited in the collective than the one that waited longest: how late it arrived."""


class SlowRank(TypedDict):
    """A rank that was slower than the median of all ranks."""

    rank: int
    node: str
    cause: str
    """`computing`, `data` or `between steps`."""
    excess: float
    """Of the median rank's value (`computing`), otherwise of the step time: 0.5 is one half."""


@dataclass(frozen=True, kw_only=True)
class RanksRecord:
    """Times of all ranks over the last `WINDOW` exchanges, after `step` steps."""

    step: int
    num_ranks: int
    step_s: float
    """Medians over the ranks, in seconds."""
    data_wait_s: float
    late_s: float
    computing_s: float = 0.0
    """0 if it was not measured, as in records of earlier versions."""
    slow: list[SlowRank] = field(default_factory=list)
    """At most `MAX_LISTED`, the slowest first."""


class SlowRankDetector:
    """Judges the times of all ranks, `WINDOW` exchanges at a time.

    Other processes disturb the measurements of computing. A rank is therefore slow only if it exceeds the median rank
    in all but `NUM_EXCEPTIONS` of `NUM_MEASUREMENTS` measurements. A verdict holds until the next one.

    Args:
        max_excess: A rank is slow above this excess over the median of all ranks.
    """

    def __init__(self, max_excess: float) -> None:
        self._max_excess = max_excess
        self._window: list[list[RankTimes]] = []
        self._ratios: list[list[float]] = []
        self._medians_s: list[float] = []
        self._excesses: list[float] = []
        self._computing_s = 0.0

    def add(self, step: int, times: Sequence[RankTimes], node_names: Sequence[str]) -> RanksRecord | None:
        """Add the times from an exchange, one element per rank. Return a record when the window is full."""
        if not times:
            return None
        self._window.append(list(times))
        self._judge_computing([one.computing_s for one in times])
        if len(self._window) < WINDOW:
            return None
        ranks = [_average(of_rank) for of_rank in zip(*self._window, strict=True)]
        self._window.clear()
        step_s, data_s, late_s = (
            statistics.median_low(getattr(rank, name) for rank in ranks) for name in ("step_s", "data_wait_s", "late_s")
        )
        slow: list[SlowRank] = []
        for number, rank in enumerate(ranks):
            excesses = {
                COMPUTING: self._excesses[number] if self._excesses else 0.0,
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
            computing_s=self._computing_s,
            late_s=late_s,
            slow=slow[:MAX_LISTED],
        )

    def _judge_computing(self, values: Sequence[float]) -> None:
        """Add a measurement, one value per rank, and judge the last ones if there are enough."""
        if not all(values):
            return
        median_s = statistics.median_low(values)
        self._medians_s.append(median_s)
        self._ratios.append([value / median_s for value in values])
        if len(self._ratios) < NUM_MEASUREMENTS:
            return
        self._excesses = [sorted(of_rank)[NUM_EXCEPTIONS] - 1 for of_rank in zip(*self._ratios, strict=True)]
        self._computing_s = statistics.median(self._medians_s)
        self._ratios.clear()
        self._medians_s.clear()


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
