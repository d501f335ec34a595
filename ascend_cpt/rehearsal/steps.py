"""A rehearsal's steps, and the table of their results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ascend_cpt.errors import CptError

PASSED, FAILED, SKIPPED, NOT_RUN = "passed", "FAILED", "skipped", "not run"


@dataclass
class Step:
    """One row of the table."""

    name: str
    result: str = NOT_RUN
    seconds: float | None = None
    difference: str = ""
    note: str = ""


@dataclass
class StepList:
    """Runs steps one after another. After a failure, the remaining steps are not run.

    Args:
        names: Names of all steps, in order.
        report: Called with a line when a step starts and when it ends.
    """

    names: tuple[str, ...]
    report: Callable[[str], None]
    steps: list[Step] = field(init=False)

    def __post_init__(self) -> None:
        self.steps = [Step(name) for name in self.names]

    @property
    def passed(self) -> bool:
        """Whether every step passed or was skipped."""
        return all(step.result in (PASSED, SKIPPED) for step in self.steps)

    def skip(self, name: str, reason: str) -> None:
        """Mark a step as not applicable."""
        step = self._find(name)
        step.result, step.note = SKIPPED, reason
        self.report(f"{name}: skipped, {reason}")

    @contextmanager
    def run(self, name: str, *, is_preparation: bool = False) -> Iterator[Step]:
        """Time a step. A CptError raised in the block fails the step and ends the rehearsal.

        Args:
            name: The step.
            is_preparation: Whether errors come from the user's machine or data, and so are raised unchanged.

        Raises:
            RehearsalFailed: after the step has been marked as failed.
        """
        step, start_s = self._find(name), time.monotonic()
        self.report(f"{name} ...")
        try:
            yield step
        except CptError as error:
            step.result, step.note = FAILED, str(error)
            if is_preparation:
                raise
            raise RehearsalFailed(f"{name}: {error}") from None
        else:
            step.result = PASSED
        finally:
            step.seconds = time.monotonic() - start_s
            self.report(f"{name}: {step.result} after {step.seconds:.0f} s")

    def _find(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)


class RehearsalFailed(CptError):
    """A step of the rehearsal failed."""

    exit_code = 1


def render(steps: list[Step]) -> str:
    """Return the table as text, with the rows' notes below it."""
    heads = ("step", "result", "seconds", "largest difference")
    rows = [
        (step.name, step.result, "" if step.seconds is None else f"{step.seconds:.0f}", step.difference)
        for step in steps
    ]
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]

    def line(cells: tuple[str, ...]) -> str:
        padded = [
            cell.rjust(width) if column == 2 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    table = [line(heads), "  ".join("-" * width for width in widths), *map(line, rows)]
    notes = [f"{step.name}: {step.note}" for step in steps if step.note]
    return "\n".join([*table, *([""] if notes else []), *notes])
