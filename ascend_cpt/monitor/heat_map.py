"""Heat maps of needle tasks: scores by length and depth, from a record's `<metric>/<length>/<depth>` values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ascend_cpt.monitor.record import is_cell


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """The scores of one metric after `step` steps."""

    step: int
    metric: str
    lengths: tuple[int, ...]
    """Ascending, in tokens."""
    depths: tuple[float, ...]
    """Ascending, 0 to 1."""
    scores: Mapping[tuple[int, float], float]
    """(length, depth) → score; cells without a needle are missing."""


def read_heat_maps(record: Mapping[str, Any]) -> list[HeatMap]:
    """Return the heat map for each metric in a task record, or none if the task is not a needle task."""
    scores: dict[str, dict[tuple[int, float], float]] = {}
    for name, value in record["values"].items():
        if is_cell(name):
            metric, length, depth = name.split("/")
            scores.setdefault(metric, {})[int(length), float(depth)] = float(value)
    return [
        HeatMap(
            step=int(record["step"]),
            metric=metric,
            lengths=tuple(sorted({length for length, _ in cells})),
            depths=tuple(sorted({depth for _, depth in cells})),
            scores=cells,
        )
        for metric, cells in scores.items()
    ]


def choose_heat_maps(records: Sequence[Mapping[str, Any]]) -> list[list[HeatMap]]:
    """Return, for each metric, the maps from a task's first and last records, or one map if they coincide."""
    chosen: Iterable[Mapping[str, Any]] = records if len(records) < 2 else (records[0], records[-1])
    by_metric: dict[str, list[HeatMap]] = {}
    for record in chosen:
        for found in read_heat_maps(record):
            by_metric.setdefault(found.metric, []).append(found)
    return list(by_metric.values())
