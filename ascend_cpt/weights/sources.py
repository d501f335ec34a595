"""Tensor sources for a new folder: a folder, the mean of several, one with a resized vocabulary, or an upcycled one."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.families import VOCABULARY_TENSORS
from ascend_cpt.model.parameters import list_hf_shapes
from ascend_cpt.model.sizes import ModelSizes
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


class UpcycledModel:
    """A dense model whose MLP is copied to every expert of a layer (Komatsuzaki et al. 2022, arXiv 2212.05055).

    As published, the routers' weights are normal with a standard deviation of 0.02. The router's weights of a token's
    experts must add up to 1 (`norm_topk_prob`), so that copies without noise give the output of the dense MLP.

    Args:
        source: The dense model, with Hugging Face names.
        sizes: The mixture of experts.
        noise: Standard deviation of normal noise added to every expert, relative to that of the copied tensor.
        seed: Seed of routers and noise; each tensor has its own stream.
    """

    def __init__(self, source: TensorSource, sizes: ModelSizes, *, noise: float, seed: int) -> None:
        assert sizes.experts is not None and sizes.experts.normalizes
        self._source, self._noise, self._seed = source, noise, seed
        self.path = source.path
        self.tensors = {
            name: TensorInfo(name=name, dtype=source.tensors[_find_dense(name)].dtype, shape=shape)
            for name, shape in list_hf_shapes(sizes).items()
        }

    def read(self, name: str) -> Array:
        dense = _find_dense(name)
        dtype = self.tensors[name].dtype
        if _ROUTER.search(name):
            router = self._draw(name, self.tensors[name].shape) * np.float32(_ROUTER_DEVIATION)
            return cast(router, "F32", dtype, name)
        tensor = self._source.read(dense)
        if dense == name or not self._noise:
            return tensor
        values = to_float32(tensor, dtype)
        noise = self._draw(name, values.shape) * np.float32(self._noise * float(values.std(dtype=np.float64)))
        return cast(values + noise, "F32", dtype, name)

    def _draw(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return np.random.default_rng([self._seed, zlib.crc32(name.encode())]).standard_normal(shape, np.float32)


_ROUTER_DEVIATION = 0.02
_EXPERT = re.compile(r"\.mlp\.experts\.\d+\.")
_ROUTER = re.compile(r"\.mlp\.gate\.weight$")


def _find_dense(name: str) -> str:
    """Return the dense model's tensor for a tensor of the mixture: the same, the MLP's, or for a router the gate's."""
    return _ROUTER.sub(".mlp.gate_proj.weight", _EXPERT.sub(".mlp.", name))
