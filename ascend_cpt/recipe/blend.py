"""Chooses the source of each row in a run so that the weights hold in every part of the run.

A blend is a short, repeating pattern of sources. The pattern is Tijdeman's solution to the chairman assignment problem
("The chairman assignment problem", Discrete Mathematics 32, 1980): after any number of rows, the number of rows from
each source differs from its share by less than one row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

MAX_PATTERN_ROWS = 100_000


def normalize_shares(weights: Mapping[str, float | Fraction]) -> dict[str, Fraction]:
    """Return each source's share: its weight over the sum of weights, in exact arithmetic (0.7 is 7/10).

    Shares with a common denominator above MAX_PATTERN_ROWS are rounded to multiples of 1 / MAX_PATTERN_ROWS.

    Raises:
        ValueError: a weight is not positive, or a share rounds to 0.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"{name}: a weight must be above 0, got {weight}; remove a source that is not used")
    exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
    total = sum(exact.values())
    shares = {name: weight / total for name, weight in exact.items()}
    if math.lcm(*(share.denominator for share in shares.values())) <= MAX_PATTERN_ROWS:
        return shares
    parts = split_by_largest_remainder(MAX_PATTERN_ROWS, list(shares.values()))
    for name, part in zip(shares, parts, strict=True):
        if part == 0:
            raise ValueError(f"{name}: its share is below one row in {MAX_PATTERN_ROWS}; remove it or raise its weight")
    return {name: Fraction(part, MAX_PATTERN_ROWS) for name, part in zip(shares, parts, strict=True)}


def split_by_largest_remainder(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Split `total` into whole parts, rounding each share up or down (largest remainder method)."""
    parts = [math.floor(total * share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda index: (parts[index] - total * shares[index], index))
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


@dataclass(frozen=True, kw_only=True)
class Blend:
    """The sources' shares, which add up to 1. Sources are numbered in the order of `shares`."""

    shares: tuple[Fraction, ...]

    @cached_property
    def pattern(self) -> np.ndarray:
        """The source of each row of one period, int16 of shape (period,)."""
        return _make_pattern(self.shares)

    @cached_property
    def _occurrences(self) -> list[np.ndarray]:
        return [np.nonzero(self.pattern == source)[0] for source in range(len(self.shares))]

    @cached_property
    def _ordinals(self) -> np.ndarray:
        """For each row of the period, the number of earlier rows from the same source."""
        ordinals = np.empty(len(self.pattern), dtype=np.int64)
        for places in self._occurrences:
            ordinals[places] = np.arange(len(places))
        return ordinals

    def count(self, num_rows: int) -> np.ndarray:
        """Return the number of rows from each source among the first `num_rows` rows, int64 of shape (sources,)."""
        periods, rest = divmod(num_rows, len(self.pattern))
        return np.array(
            [periods * len(places) + int(np.searchsorted(places, rest)) for places in self._occurrences], dtype=np.int64
        )

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each position (int64, from 0), its source and the number of earlier rows from that source."""
        periods, rest = np.divmod(positions, len(self.pattern))
        sources = self.pattern[rest]
        per_period = np.array([len(places) for places in self._occurrences], dtype=np.int64)
        return sources, periods * per_period[sources] + self._ordinals[rest]


def _make_pattern(shares: Sequence[Fraction]) -> np.ndarray:
    """Return one period of Tijdeman's assignment, computed in integers to be the same on every machine."""
    assert sum(shares) == 1 and all(share > 0 for share in shares)
    period = math.lcm(*(share.denominator for share in shares))
    if len(shares) == 1:
        return np.zeros(period, dtype=np.int16)
    parts = [int(share * period) for share in shares]
    scale = 2 * len(shares) - 2
    behind = [0] * len(shares)  # share minus actual rows of each source, in rows × period
    pattern = np.empty(period, dtype=np.int16)
    for position in range(period):
        for source, part in enumerate(parts):
            behind[source] += part
        eligible = [source for source in range(len(parts)) if scale * behind[source] >= period]
        # Choose the source with the earliest deadline: the time until the source is a whole row behind, less 1 / scale.
        # Distinct quotients differ by more than 1e-10, so floats suffice; ties go to the lower number.
        chosen = min(eligible, key=lambda source: ((scale - 1) * period - scale * behind[source]) / parts[source])
        pattern[position] = chosen
        behind[chosen] -= period
    return pattern
