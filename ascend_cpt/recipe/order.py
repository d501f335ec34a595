"""The order of training rows: a seeded permutation for each epoch, computed without an index in memory.

A Feistel network permutes the numbers below a power of four. Results outside the range are permuted again until they
are inside (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). Every rank can
therefore compute any position of the run directly, even after a resume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_ROUNDS = 6


@dataclass(frozen=True, kw_only=True)
class RowOrder:
    """Maps run positions to rows. Every epoch visits each of the `num_rows` rows once, in a different order."""

    num_rows: int
    seed: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Check the number of rows.

        Raises:
            ValueError: there are no rows.
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
    """Mix 64-bit numbers (the finalizer of SplitMix64: Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
