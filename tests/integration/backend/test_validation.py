"""Validation with MindSpore's global parallel context."""

from __future__ import annotations

import pytest

pytest.importorskip("mindformers")

from mindspore.parallel._auto_parallel_context import auto_parallel_context

from ascend_cpt.backend.training.row_scorer import without_accumulation


def test_the_number_of_micro_batches_is_restored() -> None:
    """As compiling a training graph with 4 micro batches leaves it."""
    handle = auto_parallel_context()._context_handle
    before = handle.get_grad_accumulation_step()
    handle.set_grad_accumulation_step(4)
    try:
        with without_accumulation():
            assert handle.get_grad_accumulation_step() == 1
        assert handle.get_grad_accumulation_step() == 4
        with pytest.raises(RuntimeError), without_accumulation():
            raise RuntimeError
        assert handle.get_grad_accumulation_step() == 4
    finally:
        handle.set_grad_accumulation_step(before)
