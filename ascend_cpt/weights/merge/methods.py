"""The arithmetic of the merge methods, on float32 arrays. Methods, parameters and results are those of mergekit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

LINEAR, SLERP, TASK_ARITHMETIC = "linear", "slerp", "task_arithmetic"
METHODS = (LINEAR, SLERP, TASK_ARITHMETIC)
# Vectors with a larger cosine, in absolute value, are interpolated linearly.
COLINEAR_COSINE = 0.9995
# A vector that is not longer than this has no direction and is not normalized.
_MIN_NORM = 1e-8
# Weights whose sum is smaller than this are not normalized by task arithmetic.
_MIN_SUM = 1e-8

Float32 = NDArray[np.float32]


def combine_linearly(tensors: Iterable[Float32], weights: Sequence[float], *, normalize: bool) -> Float32:
    """Return Σ wᵢ xᵢ, divided by Σ wᵢ if `normalize`. The tensors are consumed one at a time.

    The weights must not sum to 0 if `normalize`.
    """
    total = _sum(tensors, weights)
    return total / sum_weights(weights) if normalize else total


def add_task_vectors(
    base: Float32, tensors: Iterable[Float32], weights: Sequence[float], *, normalize: bool
) -> Float32:
    """Return base + Σ wᵢ (xᵢ - base). With `normalize`, the sum is divided by Σ wᵢ unless that is 0."""
    change = _sum((tensor - base for tensor in tensors), weights)
    divisor = sum_weights(weights)
    return base + (change / divisor if normalize and abs(divisor) >= _MIN_SUM else change)


def sum_weights(weights: Sequence[float]) -> np.float32:
    """Return the sum of the weights in float32."""
    return np.float32(np.sum(np.array(weights, np.float32), dtype=np.float32))


def _sum(tensors: Iterable[Float32], weights: Sequence[float]) -> Float32:
    total: Float32 | None = None
    for weight, tensor in zip(weights, tensors, strict=True):
        scaled = np.float32(weight) * tensor
        total = scaled if total is None else total + scaled
    assert total is not None, "a merge has at least one tensor"
    return total


class Angle:
    """Measures the angle between two tensors, which are passed in parts."""

    def __init__(self) -> None:
        self._dot = self._square_0 = self._square_1 = 0.0

    def add(self, part_0: Float32, part_1: Float32) -> None:
        """Add the same part of both tensors."""
        wide_0, wide_1 = part_0.astype(np.float64).ravel(), part_1.astype(np.float64).ravel()
        self._dot += float(wide_0 @ wide_1)
        self._square_0 += float(wide_0 @ wide_0)
        self._square_1 += float(wide_1 @ wide_1)

    def cosine(self) -> float:
        """Return the cosine. A tensor of zeros has none, so its product with the other tensor is returned: 0."""
        norms = (math.sqrt(self._square_0), math.sqrt(self._square_1))
        return self._dot / math.prod(norm if norm > _MIN_NORM else 1.0 for norm in norms)


def choose_slerp_weights(t: float, cosine: float) -> tuple[float, float]:
    """Return the weights of both tensors at `t`, which is 0 at the first and 1 at the second tensor."""
    if abs(cosine) > COLINEAR_COSINE:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
