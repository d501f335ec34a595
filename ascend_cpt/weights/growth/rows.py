"""Rows for new tokens in the embedding and the output layer, and how they are initialized."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.model.families import HF_EMBEDDING, HF_OUTPUT
from ascend_cpt.weights.dtypes import Array, cast, to_float32
from ascend_cpt.weights.sources import TensorSource

MEAN, MEAN_OF_ALL, RANDOM = "mean", "mean-all", "random"
METHODS = (MEAN, MEAN_OF_ALL, RANDOM)
# Noise around the mean of all rows, in standard deviations of each column.
_NOISE = 0.01
_CHUNK_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class NewRows:
    """Which rows a model gets, and their first values."""

    first_id: int
    """Id of the first new token: the number of rows that the old tokenizer uses."""
    parts: tuple[tuple[int, ...], ...]
    """For each new token, the ids into which the old tokenizer splits it."""
    num_rows: int
    """Rows of the new model, with padding."""
    method: str = MEAN
    """`mean`: the mean of the rows of its parts. `mean-all`: the mean of all used rows, with a little noise. `random`:
    normally distributed with mean 0 and the standard deviation of the used rows."""
    seed: int = 42


class ExtendedVocabulary:
    """A Hugging Face model whose embedding and output layer have rows for new tokens. Other tensors are unchanged.

    Old rows are unchanged. Padding rows after the new tokens that the old model did not have are the mean of the used
    rows.
    """

    def __init__(self, source: TensorSource, new: NewRows) -> None:
        self._source, self._new = source, new
        self.path = source.path
        self.tensors = {
            name: dataclasses.replace(info, shape=(new.num_rows, *info.shape[1:]))
            if name in (HF_EMBEDDING, HF_OUTPUT)
            else info
            for name, info in source.tensors.items()
        }

    def read(self, name: str) -> Array:
        """Return a tensor of the new model. Peak memory: twice the tensor."""
        old = self._source.read(name)
        if name not in (HF_EMBEDDING, HF_OUTPUT):
            return old
        new, dtype = self._new, self.tensors[name].dtype
        mean, column_std, std = _summarize(old[: new.first_id], dtype)
        rows = np.empty((new.num_rows, *old.shape[1:]), old.dtype)
        rows[: len(old)] = old
        rows[len(old) :] = cast(mean, "F32", dtype, name)
        stop = new.first_id + len(new.parts)
        if new.method == MEAN:
            for row, parts in enumerate(new.parts, new.first_id):
                values = to_float32(old[list(parts)], dtype).mean(axis=0, dtype=np.float64)
                rows[row] = cast(values.astype(np.float32), "F32", dtype, name)
            return rows
        # The embedding and the output layer get different noise.
        generator = np.random.default_rng([new.seed, int(name == HF_OUTPUT)])
        noise = generator.standard_normal((len(new.parts), *old.shape[1:]), np.float32)
        values = mean + _NOISE * column_std * noise if new.method == MEAN_OF_ALL else std * noise
        rows[new.first_id : stop] = cast(values.astype(np.float32), "F32", dtype, name)
        return rows


def _summarize(rows: Array, dtype: str) -> tuple[NDArray[np.float32], NDArray[np.float32], np.float32]:
    """Return the mean and the standard deviation of each column, and the standard deviation of all numbers."""
    total = np.zeros(rows.shape[1:], np.float64)
    squares = np.zeros(rows.shape[1:], np.float64)
    for start in range(0, len(rows), _CHUNK_ROWS):
        chunk = to_float32(rows[start : start + _CHUNK_ROWS], dtype).astype(np.float64)
        total += chunk.sum(axis=0)
        squares += (chunk * chunk).sum(axis=0)
    mean, mean_square = total / len(rows), squares / len(rows)
    column_std = np.sqrt(np.maximum(mean_square - mean * mean, 0))
    std = np.sqrt(max(float(mean_square.mean() - mean.mean() ** 2), 0.0))
    return mean.astype(np.float32), column_std.astype(np.float32), np.float32(std)


def pad_rows(num_tokens: int, num_old_rows: int, multiple: int) -> int:
    """Return the rows of the new model: enough for all tokens, at least the old ones, and a multiple of `multiple`."""
    needed = max(num_tokens, num_old_rows)
    return -(-needed // multiple) * multiple
