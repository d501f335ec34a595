"""Compares the candidates' trials with the base's, and renders the table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ascend_cpt.config.values import format_count
from ascend_cpt.tune.overlays import BASE
from ascend_cpt.tune.trial import TrialResult

MIN_GAIN = 0.01
"""Smaller gains are ignored, because a few rounds give only a rough estimate of the noise."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate compared with the base.

    `gain` is the median over rounds of (candidate's median tokens/s / base's median in the same round) - 1, so that
    machine drift between rounds cancels out. `noise` is half the range of these ratios.
    """

    name: str
    results: tuple[TrialResult, ...]
    gain: float
    noise: float

    @property
    def is_faster(self) -> bool:
        """Whether the gain exceeds both the noise and 1%."""
        return self.gain > max(self.noise, MIN_GAIN)


def compare(name: str, results: Mapping[tuple[str, int], TrialResult], rounds: Iterable[int]) -> Comparison | None:
    """Compare a candidate with the base in these rounds. Return None if no round has both."""
    pairs = [
        (own, base)
        for number in rounds
        if (own := results.get((name, number))) is not None
        and (base := results.get((BASE, number))) is not None
        and not own.error
        and not base.error
    ]
    if not pairs:
        return None
    ratios = [own.median / base.median for own, base in pairs]
    return Comparison(
        name=name,
        results=tuple(own for own, _ in pairs),
        gain=statistics.median(ratios) - 1,
        noise=(max(ratios) - min(ratios)) / 2,
    )


def render_table(comparisons: Sequence[Comparison]) -> str:
    """Return the table, fastest first."""
    header = ("", "tokens/s", "min", "max", "MFU", "peak memory", "first step", "gain", "noise")
    rows = [header, *(_render(one) for one in sorted(comparisons, key=lambda one: -one.gain))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([f"{row[0]:<{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)


def _render(one: Comparison) -> tuple[str, ...]:
    speeds = [speed for result in one.results for speed in result.tokens_per_s]
    mfus = [result.mfu for result in one.results if result.mfu is not None]
    peaks = [result.peak_memory_bytes for result in one.results if result.peak_memory_bytes is not None]
    starts = [result.first_step_s for result in one.results if result.first_step_s is not None]
    is_base = one.name == BASE
    return (
        one.name,
        *(format_count(value) for value in (statistics.median(speeds), min(speeds), max(speeds))),
        f"{statistics.median(mfus):.1%}" if mfus else "-",
        f"{max(peaks) / 2**30:.1f} GB" if peaks else "-",
        f"{statistics.median(starts):.0f} s" if starts else "-",
        "" if is_base else f"{one.gain:+.1%}",
        "" if is_base else f"±{one.noise:.1%}",
    )
