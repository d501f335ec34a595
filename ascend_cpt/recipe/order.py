"""The order in which rows are trained: a seeded permutation of each epoch that needs no memory and no start-up time.

A row's place is computed, not looked up: a Feistel network permutes the numbers below a power of four and numbers that
fall outside are permuted again until they fall inside (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", CT-RSA 2002). Any position of the run can so be asked for at once, by any rank, before or after a resume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_ROUNDS = 6


@dataclass(frozen=True, kw_only=True)
class RowOrder:
    """The rows of a run: position → row. Every epoch visits each of `num_rows` rows once, in an order of its own."""

    num_rows: int
    seed: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: when there are no rows.
        """
        if self.num_rows < 1:
            raise ValueError(f"expected at least one row, got {self.num_rows}")

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Return the row (int64, in [0, num_rows)) at each position of the run (int64, from 0), same shape."""
        positions = np.asarray(positions, dtype=np.int64)
        if not self.shuffle:
            return positions % self.num_rows
        epochs, within = np.divmod(positions, self.num_rows)
        rows = np.empty_like(within)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = _permute(within[chosen], self.num_rows, self.seed, int(epoch))
        return rows


def _permute(values: np.ndarray, num_values: int, seed: int, epoch: int) -> np.ndarray:
    """Return the image of `values` under a permutation of range(num_values) that depends on seed and epoch."""
    half_bits = max(1, ((num_values - 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(NUM_ROUNDS, np.uint64)
    result = _feistel(values.astype(np.uint64), half_bits, keys)
    outside = result >= num_values
    while outside.any():
        result[outside] = _feistel(result[outside], half_bits, keys)
        outside = result >= num_values
    return result.astype(np.int64)


def _feistel(values: np.ndarray, half_bits: int, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    joined: np.ndarray = (left << shift) | right
    return joined


def _mix(values: np.ndarray) -> np.ndarray:
    """Return well-mixed 64-bit numbers (the finalizer of SplitMix64: Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
