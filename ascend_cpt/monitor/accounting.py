"""Computes the data a run has trained on exactly from the row order, so it is correct even after a resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ascend_cpt.monitor.record import DataRecord

CountRows = Callable[[int, int], Mapping[str, int]]
"""(first step, stop step) → rows of each source in these steps. Steps count from 0; the stop step is excluded."""

RECORDS_PER_RUN = 200


@dataclass(frozen=True, kw_only=True)
class PhaseSpan:
    """Steps `first_step` to `stop_step` (exclusive) of a run, counted from 0."""

    name: str
    first_step: int
    stop_step: int


class DataAccount:
    """Counts each source's tokens in each phase, and each source's epochs."""

    def __init__(
        self, count_rows: CountRows, phases: Sequence[PhaseSpan], *, rows_per_epoch: Mapping[str, int], seq_length: int
    ) -> None:
        self._count_rows, self._phases = count_rows, phases
        self._rows_per_epoch, self._seq_length = rows_per_epoch, seq_length
        self._counted_steps = 0
        self._rows: dict[str, dict[str, int]] = {}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Continue from a recorded account instead of counting from the start of the run."""
        self._counted_steps = int(record["step"])
        self._rows = {
            str(phase): {str(source): int(count) // self._seq_length for source, count in tokens.items()}
            for phase, tokens in record["tokens"].items()
        }

    def tally(self, step: int) -> DataRecord:
        """Return the data used in the first `step` steps. `step` must not decrease between calls."""
        assert step >= self._counted_steps
        for phase in self._phases:
            first, stop = max(phase.first_step, self._counted_steps), min(phase.stop_step, step)
            if first < stop:
                rows = self._rows.setdefault(phase.name, {})
                for source, count in self._count_rows(first, stop).items():
                    if count or source in rows:
                        rows[source] = rows.get(source, 0) + count
        self._counted_steps = step
        totals = dict.fromkeys(self._rows_per_epoch, 0)
        for rows in self._rows.values():
            for source, count in rows.items():
                totals[source] += count
        return DataRecord(
            step=step,
            tokens={
                phase: {source: count * self._seq_length for source, count in rows.items()}
                for phase, rows in self._rows.items()
            },
            epochs={source: count / self._rows_per_epoch[source] for source, count in totals.items()},
        )


def is_tally_due(step: int, total_steps: int, phases: Sequence[PhaseSpan]) -> bool:
    """Return whether to write the account after `step` steps: about 200 times per run, and after each phase."""
    return step % max(1, total_steps // RECORDS_PER_RUN) == 0 or any(step == phase.stop_step for phase in phases)
