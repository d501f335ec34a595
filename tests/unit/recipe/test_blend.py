"""Blends follow their weights in every prefix."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.recipe.blend import MAX_PATTERN_ROWS, Blend, normalize_shares, split_by_largest_remainder

WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=9)


@given(weights=WEIGHTS, num_rows=st.integers(1, 3000))
def test_no_source_deviates_by_a_whole_row(weights: list[int], num_rows: int) -> None:
    blend = Blend(shares=tuple(Fraction(weight, sum(weights)) for weight in weights))
    sources, ordinals = blend.locate(np.arange(num_rows))
    counts = (sources[:, None] == np.arange(len(weights))).cumsum(axis=0)
    exact = np.arange(1, num_rows + 1)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(counts - exact).max() < 1
    assert blend.count(num_rows).tolist() == counts[-1].tolist()
    for source in range(len(weights)):
        assert ordinals[sources == source].tolist() == list(range(counts[-1][source]))


def test_a_whole_period_is_exact() -> None:
    blend = Blend(shares=tuple(normalize_shares({"web": 0.7, "code": 0.2, "qa": 0.1}).values()))
    assert len(blend.pattern) == 10
    assert blend.count(10**8).tolist() == [7 * 10**7, 2 * 10**7, 10**7]


def test_the_pattern_never_changes() -> None:
    # A change of the pattern would silently break resuming runs with a blend.
    shares = normalize_shares({"web": 0.6, "code": 0.3, "qa": 0.1})
    assert Blend(shares=tuple(shares.values())).pattern.tolist() == PATTERN_6_3_1


PATTERN_6_3_1 = [0, 1, 0, 0, 1, 0, 2, 0, 1, 0]


def test_weights_are_exact_decimals() -> None:
    assert normalize_shares({"a": 0.7, "b": 0.3}) == {"a": Fraction(7, 10), "b": Fraction(3, 10)}
    assert normalize_shares({"a": 2, "b": 1}) == {"a": Fraction(2, 3), "b": Fraction(1, 3)}


def test_odd_weights_are_rounded_to_a_bounded_period() -> None:
    shares = normalize_shares({"a": 123457, "b": 987654})
    assert sum(shares.values()) == 1
    assert MAX_PATTERN_ROWS % shares["a"].denominator == 0
    assert float(shares["a"]) == pytest.approx(123457 / (123457 + 987654), abs=1 / MAX_PATTERN_ROWS)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_must_be_above_zero(weight: float) -> None:
    with pytest.raises(ValueError, match="a weight must be above 0"):
        normalize_shares({"a": 1, "b": weight})


def test_a_share_that_rounds_to_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="b: its share is below one row"):
        normalize_shares({"a": 1, "b": 1e-9})


@given(weights=WEIGHTS, total=st.integers(0, 10_000))
def test_largest_remainder(weights: list[int], total: int) -> None:
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    parts = split_by_largest_remainder(total, shares)
    assert sum(parts) == total
    assert all(abs(part - total * share) < 1 for part, share in zip(parts, shares, strict=True))
