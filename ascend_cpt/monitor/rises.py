"""Finds where a loss or score in recorded validations went beyond its limit, and where it recovered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Rise:
    """Consecutive validations with an alarm."""

    first_step: int
    """Step of the first one."""
    first_value: float
    recovered_step: int | None = None
    """Step of the first validation within the limit again; None if there is none."""
    recovered_value: float | None = None

    @property
    def num_steps(self) -> int | None:
        """Steps from the first validation with an alarm to the recovery."""
        return None if self.recovered_step is None else self.recovered_step - self.first_step


def find_rises(points: Iterable[Mapping[str, Any]], value_key: str) -> list[Rise]:
    """Return the rises in the records of a validation set (`value_key` is loss) or task (`score`), in step order."""
    rises: list[Rise] = []
    start: Mapping[str, Any] | None = None
    for point in points:
        if point.get("alarm"):
            start = point if start is None else start
        elif start is not None:
            rises.append(
                Rise(
                    first_step=int(start["step"]),
                    first_value=float(start[value_key]),
                    recovered_step=int(point["step"]),
                    recovered_value=float(point[value_key]),
                )
            )
            start = None
    if start is not None:
        rises.append(Rise(first_step=int(start["step"]), first_value=float(start[value_key])))
    return rises
