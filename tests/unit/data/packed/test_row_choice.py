"""The rows of a validation set that `max_rows` limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.data.packed.row_choice import choose_rows


@given(num_rows=st.integers(1, 10**9), max_rows=st.integers(1, 500))
def test_one_row_of_each_part(num_rows: int, max_rows: int) -> None:
    rows = choose_rows(num_rows, max_rows)
    assert rows.dtype == np.int64 and len(rows) == min(num_rows, max_rows)
    for part, row in enumerate(rows.tolist()):
        assert part * num_rows // len(rows) <= row < (part + 1) * num_rows // len(rows)


def test_choice_is_fixed() -> None:
    """Other rows would change the baselines of all runs."""
    assert choose_rows(1000, 5).tolist() == [2, 357, 517, 668, 965]
    assert choose_rows(10**9, 2).tolist() == [6942809, 893675468]


@pytest.mark.parametrize("max_rows", [None, 7, 8])
def test_all_rows_of_a_small_set(max_rows: int | None) -> None:
    assert choose_rows(7, max_rows).tolist() == list(range(7))


def test_places_within_the_parts_are_random() -> None:
    offsets = choose_rows(1000 * 100, 1000) % 100
    assert 45 < offsets.mean() < 55 and len(set(offsets.tolist())) == 100
