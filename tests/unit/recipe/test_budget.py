"""Token budgets in steps, and micro batches."""

from __future__ import annotations

import pytest

from ascend_cpt.recipe.budget import Budget, count_steps, split_global_batch


def test_pai_sample_has_50_steps_and_5_of_warmup() -> None:
    assert count_steps(1_638_400, 32 * 1024) == 50
    assert count_steps(163_840, 32 * 1024) == 5


def test_a_budget_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="give at least 4096"):
        count_steps(4095, 4096)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((16, 2, None, None), (8, 1)),
        ((128, 4, 2, None), (2, 16)),
        ((128, 4, None, 8), (4, 8)),
        ((128, 4, 2, 16), (2, 16)),
    ],
)
def test_split(arguments: tuple[int, int, int | None, int | None], expected: tuple[int, int]) -> None:
    assert split_global_batch(*arguments) == expected


@pytest.mark.parametrize("arguments", [(15, 2, None, None), (16, 2, 3, None), (16, 2, None, 3), (128, 4, 2, 8)])
def test_split_refuses(arguments: tuple[int, int, int | None, int | None]) -> None:
    with pytest.raises(ValueError, match="global_batch_size"):
        split_global_batch(*arguments)


def test_totals() -> None:
    budget = Budget(seq_length=256, global_batch_size=16, micro_batch_size=8, num_accumulation_steps=1, total_steps=10)
    assert (budget.tokens_per_step, budget.total_tokens) == (4096, 40960)
