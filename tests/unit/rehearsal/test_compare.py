"""Losses and weights of two runs are compared so that a missing or infinite value is never equal."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.rehearsal.compare import (
    compare_updates,
    find_largest_difference,
    read_losses,
    read_validation,
    summarize_updates,
)
from ascend_cpt.rehearsal.weights import write_random_folder
from ascend_cpt.weights.convert import Options, convert_to_mindformers
from ascend_cpt.weights.hf_folder import HfFolder
from tests.unit.rehearsal.test_weights import MODEL


def test_losses_are_read_by_step_and_set(tmp_path: Path) -> None:
    records = [
        {"kind": "validation", "step": 0, "name": "held", "loss": 6.5},
        {"kind": "step", "step": 1, "loss": 6.0},
        {"kind": "data", "step": 1, "tokens": {}},
        {"kind": "step", "step": 2, "loss": "nan"},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    losses = read_losses(tmp_path)
    assert losses[1] == 6.0 and math.isnan(losses[2]) and set(losses) == {1, 2}
    assert read_validation(tmp_path) == {(0, "held"): 6.5}
    assert read_losses(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("found", "keys", "expected"),
    [
        ({1: 6.0, 2: 5.5}, [1, 2], 0.5),
        ({1: 6.0, 2: 5.5}, [1], 0.0),
        ({1: 6.0}, [1, 2], math.inf),
        ({1: math.nan, 2: 5.0}, [1, 2], math.inf),
        ({1: 6.0}, [], math.inf),
    ],
)
def test_largest_difference(found: dict[int, float], keys: list[int], expected: float) -> None:
    assert find_largest_difference(found, {1: 6.0, 2: 5.0}, keys) == expected


def test_updates_are_compared_by_their_size() -> None:
    found = summarize_updates({"a": (0.01, 4.0), "b": (0.04, 1.0)})
    assert found.overall == pytest.approx(0.1)
    assert (found.worst, found.worst_name) == (pytest.approx(0.2), "b")
    # Weights that never moved, or are no numbers, must not pass.
    assert summarize_updates({"a": (0.0, 0.0)}).overall == math.inf
    assert summarize_updates({"a": (math.nan, 1.0)}).overall == math.inf


def test_an_export_is_compared_with_a_checkpoint(tmp_path: Path) -> None:
    start, exported, trained = (tmp_path / name for name in ("start", "exported", "trained"))
    write_random_folder(MODEL, start, seed=1)
    write_random_folder(MODEL, exported, seed=2)
    convert_to_mindformers(HfFolder(exported), trained, Options())
    assert compare_updates(exported, trained, start).overall == 0.0
    other = compare_updates(start, trained, start)
    assert other.overall == pytest.approx(1.0)
    assert np.isfinite(other.worst)
