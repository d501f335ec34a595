"""The account of the data."""

from __future__ import annotations

import pytest

from ascend_cpt.monitor.accounting import DataAccount, PhaseSpan, is_tally_due
from ascend_cpt.monitor.record import to_values

PHASES = [
    PhaseSpan(name="general", first_step=0, stop_step=6),
    PhaseSpan(name="qa", first_step=6, stop_step=10),
]


def count_rows(first_step: int, stop_step: int) -> dict[str, int]:
    """Return two rows of web per step, and one of qa from step 6 on."""
    return {"web": 2 * (stop_step - first_step), "qa": max(0, stop_step - max(first_step, 6))}


def make_account() -> DataAccount:
    return DataAccount(count_rows, PHASES, rows_per_epoch={"web": 10, "qa": 2}, seq_length=100)


def test_account_by_phase_and_source() -> None:
    record = make_account().tally(10)
    assert record.tokens == {"general": {"web": 1200}, "qa": {"web": 800, "qa": 400}}
    assert record.epochs == {"web": 2.0, "qa": 2.0}


@pytest.mark.parametrize("stops", [[1, 5, 6, 7, 10], [6, 10], [3, 10], [0, 10]])
def test_account_does_not_depend_on_the_steps_of_earlier_tallies(stops: list[int]) -> None:
    account = make_account()
    for stop in stops:
        record = account.tally(stop)
        assert record == make_account().tally(stop)


@pytest.mark.parametrize("stop", [3, 6, 8])
def test_restored_account_continues(stop: int) -> None:
    account = make_account()
    account.restore(to_values(make_account().tally(stop)))
    assert account.tally(10) == make_account().tally(10)


def test_account_is_due_at_the_end_of_phases_and_not_too_often() -> None:
    due = [step for step in range(1, 1_000_001) if is_tally_due(step, 1_000_000, PHASES[:1])]
    assert 6 in due and due[-1] == 1_000_000 and len(due) == 201
