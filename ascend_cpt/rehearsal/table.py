"""The result of each step of a rehearsal, as a table."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class Result(enum.Enum):
    """How a step ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_RUN = "not run"
    """A step before it failed."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one step."""

    name: str
    result: Result
    seconds: float = 0.0
    difference: float | None = None
    """Largest difference from the run on one device, or of what the step compares."""
    note: str = ""
    """What was done or compared; for a failed step the last error line."""
    log: Path | None = None
    """Where the rest of an error is."""


def has_passed(outcomes: Sequence[Outcome]) -> bool:
    """Return whether no step failed."""
    return all(outcome.result in (Result.PASSED, Result.SKIPPED) for outcome in outcomes)


def render_table(outcomes: Sequence[Outcome]) -> str:
    """Return one line for each step: name, result, seconds, largest difference, note; and a line for each kept log."""
    head = ("step", "result", "seconds", "largest difference", "")
    rows = [head, *map(_make_cells, outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in (2, 3) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines += [f"log of {item.name}: {item.log}" for item in outcomes if item.result is Result.FAILED and item.log]
    return "\n".join(lines)


def describe(outcome: Outcome) -> str:
    """Return the line that is printed when a step ends."""
    parts = [f"{outcome.name}: {outcome.result.value}"]
    if outcome.result in (Result.PASSED, Result.FAILED):
        parts.append(f"{outcome.seconds:.0f} s")
    if outcome.difference is not None:
        parts.append(f"largest difference {outcome.difference:.1e}")
    return ", ".join(parts) + (f" ({outcome.note})" if outcome.note else "")


def _make_cells(outcome: Outcome) -> tuple[str, str, str, str, str]:
    was_run = outcome.result in (Result.PASSED, Result.FAILED)
    return (
        outcome.name,
        outcome.result.value,
        f"{outcome.seconds:.0f}" if was_run else "",
        "" if outcome.difference is None else f"{outcome.difference:.1e}",
        outcome.note,
    )
