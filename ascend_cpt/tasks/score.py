"""Scores a task from its requests' log-likelihoods, using the definitions in lm-evaluation-harness 0.4.13."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ascend_cpt.tasks.check import LOWER_IS_BETTER, METRICS
from ascend_cpt.tasks.load import Request, Task


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """The result of a task."""

    name: str
    metric: str
    """The configured metric."""
    score: float
    """Its value."""
    higher_is_better: bool
    num_items: int
    metrics: Mapping[str, float]
    """Every metric of the kind and, for a needle task, each of them by cell, as `acc/<length>/<depth>`.

    All are NaN if a log-likelihood is NaN.
    """
    standard_errors: Mapping[str, float | None]
    """Standard error of the mean for acc, acc_norm and exact; None for one item and for bits_per_byte."""


def score_task(task: Task, log_likelihoods: npt.NDArray[np.float64], greedy: npt.NDArray[np.bool_]) -> TaskScore:
    """Return the score of a task.

    Args:
        task: The task.
        log_likelihoods: For each request, the sum of its continuation tokens' log-probabilities, in nats.
        greedy: For each request, whether every continuation token is the most likely one at its position.
    """
    assert log_likelihoods.shape == greedy.shape == (len(task.requests),)
    values: dict[str, float] = {}
    errors: dict[str, float | None] = {}
    invalid = bool(np.isnan(log_likelihoods).any())
    rows = _group_by_item(task)
    gold_rows = [item_rows[gold] for item_rows, gold in zip(rows, task.gold, strict=True)]
    cells: dict[str, float] = {}
    for metric in METRICS[task.kind]:
        if metric == "bits_per_byte":
            value, error = _bits_per_byte(log_likelihoods, task.requests, gold_rows), None
        else:
            if metric == "exact":
                points = [float(greedy[row]) for row in gold_rows]
            else:
                lengths = [float(request.num_chars) if metric == "acc_norm" else 1.0 for request in task.requests]
                best = [item_rows[int(np.argmax((log_likelihoods / lengths)[item_rows]))] for item_rows in rows]
                points = [float(a == b) for a, b in zip(best, gold_rows, strict=True)]
            value, error = _mean_and_error(points)
            cells |= {f"{metric}/{cell}": mean for cell, mean in _mean_by_cell(task, points).items()}
        values[metric] = math.nan if invalid else value
        errors[metric] = None if invalid else error
    values |= dict.fromkeys(cells, math.nan) if invalid else cells
    return TaskScore(
        name=task.name,
        metric=task.metric,
        score=values[task.metric],
        higher_is_better=task.metric not in LOWER_IS_BETTER,
        num_items=task.num_items,
        metrics=values,
        standard_errors=errors,
    )


def _group_by_item(task: Task) -> list[list[int]]:
    """Return, for each item, its requests' rows in the order of the choices."""
    rows: list[list[int]] = [[] for _ in range(task.num_items)]
    for row, request in enumerate(task.requests):
        assert request.choice == len(rows[request.item])
        rows[request.item].append(row)
    return rows


def _mean_by_cell(task: Task, points: Sequence[float]) -> dict[str, float]:
    """Return the mean over the items in each cell, or an empty result if the task has no cells."""
    by_cell: dict[str, list[float]] = {}
    for cell, point in zip(task.cells, points, strict=False):
        by_cell.setdefault(cell, []).append(point)
    return {cell: sum(found) / len(found) for cell, found in by_cell.items()}


def _bits_per_byte(
    log_likelihoods: npt.NDArray[np.float64], requests: Sequence[Request], gold_rows: Sequence[int]
) -> float:
    """Return the total bits of all right answers divided by their total bytes."""
    num_bytes = sum(requests[row].num_bytes for row in gold_rows)
    return -(sum(float(log_likelihoods[row]) for row in gold_rows) / num_bytes) / math.log(2)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, √(Σ(x - mean)² / (n - 1) / n)."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, deviation / math.sqrt(len(values))
