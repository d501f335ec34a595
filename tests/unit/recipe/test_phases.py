"""The order of the rows of a run: phases with blends, an order per source, independent of how it is queried."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.recipe.blend import normalize_shares
from ascend_cpt.recipe.phases import Phase, SampleOrder

NUM_ROWS = {"web": 70, "code": 30, "qa": 9}
TWO_PHASES = (
    Phase(name="general", first_step=0, stop_step=10, shares=normalize_shares({"web": 0.7, "code": 0.3})),
    Phase(name="qa", first_step=10, stop_step=20, shares=normalize_shares({"code": 0.3, "web": 0.6, "qa": 0.1})),
)
ORDER = SampleOrder(num_rows=NUM_ROWS, phases=TWO_PHASES, global_batch_size=8, seed=7)
TOGETHER = SampleOrder(
    num_rows=NUM_ROWS, phases=(Phase(name="train", first_step=0, stop_step=40),), global_batch_size=8, seed=7
)
ALONE = SampleOrder(num_rows={"web": 70}, phases=TOGETHER.phases, global_batch_size=8, seed=7)


@pytest.mark.parametrize("order", [ORDER, TOGETHER, ALONE])
def test_counts_match_locate(order: SampleOrder) -> None:
    sources, _ = order.locate(np.arange(order.total_rows))
    for first, stop in [(0, order.total_rows), (0, 1), (3, 90), (79, 81), (100, 159), (50, 50)]:
        expected = {name: int((sources[first:stop] == number).sum()) for number, name in enumerate(order.num_rows)}
        assert order.count(first, stop) == expected


def test_shares_of_the_phases() -> None:
    assert ORDER.count(0, 80) == {"web": 56, "code": 24, "qa": 0}
    assert ORDER.count(80, 160) == {"web": 48, "code": 24, "qa": 8}


def test_a_source_continues_across_phases() -> None:
    sources, rows = ORDER.locate(np.arange(ORDER.total_rows))
    for number, (name, num_rows) in enumerate(NUM_ROWS.items()):
        drawn = rows[sources == number]
        for epoch in range(0, len(drawn), num_rows):
            visited = drawn[epoch : epoch + num_rows]
            assert len(set(visited.tolist())) == len(visited), f"{name} repeats a row within an epoch"
        assert drawn.max() < num_rows


def test_shuffled_together_visits_each_row_once_per_epoch() -> None:
    total = sum(NUM_ROWS.values())
    sources, rows = TOGETHER.locate(np.arange(2 * total))
    for epoch in (slice(0, total), slice(total, 2 * total)):
        assert len(set(zip(sources[epoch].tolist(), rows[epoch].tolist(), strict=True))) == total


@given(start=st.integers(0, 150), num_ranks=st.sampled_from([1, 2, 4, 8]))
def test_positions_are_independent(start: int, num_ranks: int) -> None:
    whole = np.stack(ORDER.locate(np.arange(ORDER.total_rows)))
    part = np.stack(ORDER.locate(np.arange(start, ORDER.total_rows)[::num_ranks]))
    assert (part == whole[:, start::num_ranks]).all()


def name_rows(order: SampleOrder) -> list[tuple[str, int]]:
    names = list(order.num_rows)
    sources, rows = order.locate(np.arange(80))
    return [(names[source], int(row)) for source, row in zip(sources, rows, strict=True)]


def test_a_new_phase_does_not_change_earlier_ones() -> None:
    # Nor does another order of the sources, or another source.
    first = SampleOrder(num_rows={"code": 30, "web": 70}, phases=(TWO_PHASES[0],), global_batch_size=8, seed=7)
    assert name_rows(first) == name_rows(ORDER)


def test_record_round_trip() -> None:
    for order in (ORDER, TOGETHER):
        copy = SampleOrder.from_record(json.loads(json.dumps(order.to_record())))
        positions = np.arange(order.total_rows)
        assert np.array_equal(np.stack(copy.locate(positions)), np.stack(order.locate(positions)))


def test_the_order_never_changes() -> None:
    sources, rows = ORDER.locate(np.arange(76, 90))
    assert sources.tolist() == SOURCES_76_90
    assert rows.tolist() == ROWS_76_90


SOURCES_76_90 = [0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 2, 0, 1, 0]
ROWS_76_90 = [12, 47, 20, 19, 3, 14, 69, 18, 8, 9, 2, 61, 18, 56]
