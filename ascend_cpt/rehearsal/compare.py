"""Compares what two runs logged, and how far their weights moved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ascend_cpt.monitor.history import read_metrics
from ascend_cpt.run.trained_model import open_trained
from ascend_cpt.weights.dtypes import to_float32
from ascend_cpt.weights.hf_folder import HfFolder
from ascend_cpt.weights.mapping import iterate_to_hf

METRICS_NAME = "metrics.jsonl"
# In float32, with sums in another order.
MAX_LOSS_DIFFERENCE = 1e-4
# Adam's first steps are about ± the rate: elements whose gradient is almost 0 may get the other sign.
MAX_UPDATE_DIFFERENCE = 0.1


@dataclass(frozen=True, kw_only=True)
class UpdateDifference:
    """How far the weights of two runs differ, relative to how far training moved them."""

    overall: float
    """‖parallel - one‖ / ‖one - start‖ over all weights."""
    worst: float
    """The same of the tensor where it is largest."""
    worst_name: str


def read_records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Return the records of a kind (`step` or `validation`) in a run's metrics.jsonl."""
    return [record for record in read_metrics(run_dir / METRICS_NAME) if record["kind"] == kind]


def read_losses(run_dir: Path) -> dict[int, float]:
    """Return step → loss; NaN where the loss is no number."""
    return {record["step"]: _to_number(record["loss"]) for record in read_records(run_dir, "step")}


def read_validation(run_dir: Path) -> dict[tuple[int, str], float]:
    """Return (step, set) → loss."""
    return {
        (record["step"], record["name"]): _to_number(record["loss"]) for record in read_records(run_dir, "validation")
    }


def find_largest_difference(found: Mapping[Any, float], expected: Mapping[Any, float], keys: Iterable[Any]) -> float:
    """Return the largest absolute difference over `keys`; infinite where a value is missing or no number."""
    differences = [abs(found.get(key, math.nan) - expected.get(key, math.nan)) for key in keys]
    return max((value if math.isfinite(value) else math.inf for value in differences), default=math.inf)


def compare_updates(exported: Path, one_device: Path, start: Path) -> UpdateDifference:
    """Compare exported weights with those of the run on one device.

    Args:
        exported: Hugging Face folder of the parallel run.
        one_device: Run folder of the run on one device.
        start: Hugging Face folder that both started from.

    Raises:
        CheckpointError: when one of them is damaged or of another model.
    """
    parallel, before = HfFolder(exported), HfFolder(start)
    one = open_trained(one_device).source
    squares: dict[str, tuple[float, float]] = {}
    for name, tensor in iterate_to_hf(before.sizes, one.read):
        trained = _widen(to_float32(tensor, parallel.tensors[name].dtype))
        other, first = (
            _widen(to_float32(folder.read(name), folder.tensors[name].dtype)) for folder in (parallel, before)
        )
        squares[name] = float(np.square(other - trained).sum()), float(np.square(trained - first).sum())
    return summarize_updates(squares)


def summarize_updates(squares: Mapping[str, tuple[float, float]]) -> UpdateDifference:
    """Return the ratios from tensor → (squared norm of the difference, squared norm of the update)."""
    ratios = {name: _divide(difference, update) for name, (difference, update) in squares.items()}
    worst = max(ratios, key=lambda name: ratios[name])
    overall = _divide(sum(pair[0] for pair in squares.values()), sum(pair[1] for pair in squares.values()))
    return UpdateDifference(overall=overall, worst=ratios[worst], worst_name=worst)


def _divide(difference: float, update: float) -> float:
    """Return the ratio of two norms from their squares; infinite where nothing moved or a value is no number."""
    if not (math.isfinite(difference) and math.isfinite(update)) or update == 0:
        return math.inf
    return math.sqrt(difference / update)


def _widen(tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return tensor.astype(np.float64)


def _to_number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
