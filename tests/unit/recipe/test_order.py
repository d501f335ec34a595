"""The row order: a permutation of each epoch, independent of the start position, and well mixed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.recipe.order import RowOrder


@given(num_rows=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 5))
def test_every_epoch_visits_each_row_once(num_rows: int, seed: int, epoch: int) -> None:
    order = RowOrder(num_rows=num_rows, seed=seed)
    rows = order.rows_at(np.arange(epoch * num_rows, (epoch + 1) * num_rows))
    assert sorted(rows.tolist()) == list(range(num_rows))


@given(num_rows=st.integers(2, 500), seed=st.integers(0, 99), start=st.integers(0, 2000))
def test_positions_are_independent(num_rows: int, seed: int, start: int) -> None:
    order = RowOrder(num_rows=num_rows, seed=seed)
    whole = order.rows_at(np.arange(start, start + 50))
    assert [int(order.rows_at(np.array([start + index]))[0]) for index in range(50)] == whole.tolist()


def test_epochs_and_seeds_differ() -> None:
    first = RowOrder(num_rows=1000, seed=1).rows_at(np.arange(2000))
    assert first[:1000].tolist() != first[1000:].tolist()
    assert first.tolist() != RowOrder(num_rows=1000, seed=2).rows_at(np.arange(2000)).tolist()


def test_order_is_well_mixed() -> None:
    rows = RowOrder(num_rows=20_000, seed=7).rows_at(np.arange(20_000)).astype(float)
    neighbours = np.corrcoef(rows[:-1], rows[1:])[0, 1]
    place = np.corrcoef(rows, np.arange(20_000))[0, 1]
    assert abs(neighbours) < 0.03 and abs(place) < 0.03
    assert abs(rows[:2000].mean() - 10_000) < 500


def test_the_order_never_changes() -> None:
    # A change of the order would silently break resuming runs.
    assert RowOrder(num_rows=10, seed=42).rows_at(np.arange(20)).tolist() == ORDER_10_42


ORDER_10_42 = [4, 8, 9, 3, 0, 5, 6, 7, 2, 1, 2, 6, 8, 5, 3, 7, 1, 4, 9, 0]


def test_unshuffled_order_is_the_file_order() -> None:
    assert RowOrder(num_rows=3, seed=1, shuffle=False).rows_at(np.arange(7)).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        RowOrder(num_rows=0, seed=1)
