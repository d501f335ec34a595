"""Chooses the rows of a validation set limited by `max_rows`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SEED = 20240621
"""Fixed, so that every run and every stage evaluates the same rows."""


def choose_rows(num_rows: int, max_rows: int | None) -> npt.NDArray[np.int64]:
    """Return up to `max_rows` of `num_rows` row indices, ascending, as int64 of shape (rows,); all rows for None.

    The set is divided into `max_rows` parts of equal size (to within one row), and one random row is taken from each.
    The choice depends only on the two numbers. It uses PCG64's raw output, which NumPy guarantees for a seed, rather
    than `Generator` methods, which may change.
    """
    if max_rows is None or max_rows >= num_rows:
        return np.arange(num_rows, dtype=np.int64)
    bounds = np.arange(max_rows + 1, dtype=np.uint64) * np.uint64(num_rows) // np.uint64(max_rows)
    starts, sizes = bounds[:-1], np.diff(bounds)
    # A 32-bit fraction of the part, in integer arithmetic.
    fractions = np.random.PCG64(SEED).random_raw(max_rows) >> np.uint64(32)
    chosen: npt.NDArray[np.int64] = (starts + (fractions * sizes >> np.uint64(32))).astype(np.int64)
    return chosen
