"""Tensor sources for a new folder: a folder, the mean of several, or a folder with a resized vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.families import VOCABULARY_TENSORS
from ascend_cpt.weights.dtypes import Array, cast, to_float32
from ascend_cpt.weights.merge.methods import combine_linearly
from ascend_cpt.weights.safetensors_file import TensorInfo


class TensorSource(Protocol):
    """Tensors by name, read on demand."""

    @property
    def path(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> Array: ...


class MeanOfFolders:
    """The mean of the tensors in several folders, summed in float32 and returned in the first folder's dtype.

    Raises:
        CheckpointError: the folders have different tensors.
    """

    def __init__(self, sources: Sequence[TensorSource]) -> None:
        self._sources = sources
        self.path = sources[0].path
        self.tensors = sources[0].tensors
        for source in sources[1:]:
            if source.tensors != self.tensors:
                raise CheckpointError(
                    f"{source.path}: does not have the same tensors as {self.path}; give checkpoints of the same model"
                )

    def read(self, name: str) -> Array:
        dtype = self.tensors[name].dtype
        tensors = (to_float32(source.read(name), dtype) for source in self._sources)
        mean = combine_linearly(tensors, [1.0] * len(self._sources), normalize=True)
        return cast(mean, "F32", dtype, name)


class ResizedVocabulary:
    """Resizes the embedding and output layer to `vocab_size` rows by truncating or appending the mean of all rows."""

    def __init__(self, source: TensorSource, vocab_size: int) -> None:
        self._source, self._vocab_size = source, vocab_size
        self.path = source.path
        self.tensors = {
            name: dataclasses.replace(info, shape=(vocab_size, *info.shape[1:])) if name in VOCABULARY_TENSORS else info
            for name, info in source.tensors.items()
        }

    def read(self, name: str) -> Array:
        tensor = self._source.read(name)
        num_new = self._vocab_size - len(tensor)
        if name not in VOCABULARY_TENSORS or num_new == 0:
            return tensor
        if num_new < 0:
            return tensor[: self._vocab_size]
        dtype = self.tensors[name].dtype
        mean = to_float32(tensor, dtype).mean(axis=0, dtype=np.float64).astype(np.float32)
        new_rows = np.broadcast_to(cast(mean, "F32", dtype, name), (num_new, *tensor.shape[1:]))
        return np.concatenate([tensor, new_rows])
