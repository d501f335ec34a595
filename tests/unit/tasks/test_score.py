"""Scores from log-likelihoods, by hand. tests/unit/tasks/test_lm_eval.py compares with lm-evaluation-harness."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ascend_cpt.tasks.load import Request, Task
from ascend_cpt.tasks.score import TaskScore, score_task


def make_task(kind: str, metric: str, num_chars: list[list[int]], gold: list[int]) -> Task:
    requests = tuple(
        Request(
            item=item,
            choice=choice,
            context=(1,),
            continuation=(2,),
            num_bytes=length if choice else 3 * length,
            num_chars=length,
        )
        for item, lengths in enumerate(num_chars)
        for choice, length in enumerate(lengths)
    )
    items = tuple(f"items.jsonl:{item}" for item in range(len(num_chars)))
    return Task(
        name="demo",
        kind=kind,
        metric=metric,
        requests=requests,
        num_items=len(num_chars),
        gold=tuple(gold),
        items=items,
        too_long=(),
    )


def score(task: Task, log_likelihoods: list[float], greedy: list[bool] | None = None) -> TaskScore:
    flags: Any = np.zeros(len(log_likelihoods), bool) if greedy is None else np.array(greedy)
    return score_task(task, np.array(log_likelihoods), flags)


def test_multiple_choice() -> None:
    task = make_task("multiple_choice", "acc_norm", [[1, 10], [2, 2, 2], [1, 1]], [1, 0, 1])
    result = score(task, [-2.0, -10.0, -4.0, -1.0, -3.0, -1.0, -1.0])
    # Per character the first item's second choice is better. The last item is a tie: the first choice is taken.
    assert result.metrics["acc"] == 0
    assert result.metrics["acc_norm"] == result.score == pytest.approx(1 / 3)
    assert result.standard_errors["acc_norm"] == pytest.approx(1 / 3)
    assert result.metrics["bits_per_byte"] == pytest.approx((10 + 4 + 1) / (10 + 3 * 2 + 1) / math.log(2))
    assert result.standard_errors["bits_per_byte"] is None
    assert (result.metric, result.higher_is_better, result.num_items) == ("acc_norm", True, 3)


def test_continuation() -> None:
    task = make_task("continuation", "exact", [[4], [4], [8], [8]], [0, 0, 0, 0])
    result = score(task, [-1.0, -2.0, -3.0, -4.0], [True, False, False, False])
    assert list(result.metrics) == ["exact", "bits_per_byte"]
    assert result.score == 0.25
    assert result.standard_errors["exact"] == pytest.approx(0.25)


def test_one_item_has_no_standard_error() -> None:
    assert score(make_task("continuation", "exact", [[4]], [0]), [-1.0], [True]).standard_errors["exact"] is None


@pytest.mark.parametrize("kind", ["multiple_choice", "continuation"])
def test_nan_is_not_a_score(kind: str) -> None:
    task = make_task(kind, "bits_per_byte", [[1], [1]], [0, 0])
    result = score(task, [-1.0, math.nan])
    assert all(math.isnan(value) for value in result.metrics.values())
    assert not result.higher_is_better
