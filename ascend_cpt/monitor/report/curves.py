"""Reduces columns to the points that a curve needs, and encodes them for the page."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_BUCKETS = 500
"""A curve has at most three points per bucket: its minimum, its maximum, and a gap."""
SMOOTH_SHARE = 50
"""The smoothed curve averages over 1/50 of the run."""

Floats = NDArray[np.float64]
Values = list[float | None] | dict[str, str]
"""The values of a curve in the page: a list, or a long curve's `dtype` and base64 `bdata`."""
MAX_LISTED = 100
"""Longer curves are encoded in base64, which takes half the space of decimal numbers."""


def downsample(values: Floats, num_buckets: int = NUM_BUCKETS) -> NDArray[np.int64]:
    """Return the indices to plot: the first, the last, and each bucket's minimum and maximum, so no spike is lost.

    A bucket with non-finite values also keeps one of them, shown as a gap in the curve.
    """
    count = len(values)
    if count <= 2 * num_buckets:
        return np.arange(count)
    width = -(-count // num_buckets)
    # Rows are buckets. The last one is filled with repetitions of the last value, which add nothing new.
    rows = np.concatenate([values, np.full(-count % width, values[-1])]).reshape(-1, width)
    finite = np.isfinite(rows)
    starts = np.arange(len(rows)) * width
    has_values, has_gap = finite.any(axis=1), ~finite.all(axis=1)
    lows = starts + np.where(finite, rows, np.inf).argmin(axis=1)
    highs = starts + np.where(finite, rows, -np.inf).argmax(axis=1)
    gaps = starts + finite.argmin(axis=1)
    kept = np.concatenate([[0, count - 1], lows[has_values], highs[has_values], gaps[has_gap]])
    indices: NDArray[np.int64] = np.unique(np.minimum(kept, count - 1))
    return indices


def thin(values: Floats, num_points: int) -> NDArray[np.int64]:
    """Return at most `num_points` evenly spaced indices, with the first and the last."""
    return np.unique(np.linspace(0, len(values) - 1, min(num_points, len(values))).round().astype(np.int64))


def smooth(values: Floats, middles: NDArray[np.int64]) -> tuple[Floats, int]:
    """Return the centered moving average at some indices and its window in steps, ignoring non-finite values."""
    window = max(1, len(values) // SMOOTH_SHARE)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    starts, stops = np.maximum(middles - window // 2, 0), np.minimum(middles + window // 2 + 1, len(values))
    totals, numbers = sums[stops] - sums[starts], counts[stops] - counts[starts]
    return np.where(numbers > 0, totals / np.maximum(numbers, 1), np.nan), window // 2 * 2 + 1


def make_curve(steps: Floats, values: Floats) -> dict[str, Values] | None:
    """Return the points `x`, `y` to plot, or None if no value is finite. In a gap, `y` is None or NaN."""
    if not np.isfinite(values).any():
        return None
    chosen = downsample(values)
    return {"x": encode(steps[chosen], "<i4"), "y": encode(values[chosen], "<f4")}


def make_mean_curve(steps: Floats, values: Floats) -> tuple[dict[str, Values], int] | None:
    """Return the moving average, eight points per window, and the window in steps; None for a short run."""
    chosen = thin(values, 8 * SMOOTH_SHARE)
    means, window = smooth(values, chosen)
    if window == 1 or not np.isfinite(means).any():
        return None
    return {"x": encode(steps[chosen], "<i4"), "y": encode(means, "<f4")}, window


def encode(values: Floats, dtype: str) -> Values:
    """Return values for the page: in base64 as `dtype` (`<i4`, `<f4`, `<f8`), or few of them as a list."""
    if len(values) <= MAX_LISTED or (dtype == "<i4" and values.max() > np.iinfo(np.int32).max):
        return [round_digits(value) for value in values]
    with np.errstate(over="ignore"):  # a value that float32 cannot hold becomes infinity, which is a gap
        return {"dtype": dtype[1:], "bdata": base64.b64encode(values.astype(dtype).tobytes()).decode("ascii")}


def encode_axes(steps: Floats, tokens: Floats, seconds: Floats) -> dict[str, Any]:
    """Return a table from which the page computes the tokens and the training time at any step."""
    chosen = thin(steps, 2 * NUM_BUCKETS)
    columns = {"steps": steps, "tokens": tokens, "seconds": np.cumsum(np.where(np.isfinite(seconds), seconds, 0.0))}
    return {
        name: encode(np.concatenate([[0.0], values[chosen]]), "<i4" if name == "steps" else "<f8")
        for name, values in columns.items()
    }


def value_at(step: float, steps: Floats, values: Floats) -> float:
    """Return a column's value at a step, from the nearest finite values; NaN if there are none."""
    finite = np.isfinite(values)
    return float(np.interp(step, steps[finite], values[finite])) if finite.any() else math.nan


def round_digits(value: float) -> float | None:
    """Return a number rounded to six significant digits, or None if it is not finite."""
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() else rounded
