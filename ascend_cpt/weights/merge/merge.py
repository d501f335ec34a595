"""Merges Hugging Face folders in parts of tensors, so that memory does not grow with the number of models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ascend_cpt import __version__
from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.parameters import list_hf_shapes
from ascend_cpt.weights.convert import CARD_NAME, Summary, name_main_dtype, summarize
from ascend_cpt.weights.dtypes import DTYPES, STORAGE, Array, cast, to_float32
from ascend_cpt.weights.folder_writer import (
    DEFAULT_SHARD_BYTES,
    create_folder,
    name_hf_file,
    write_config,
    write_json,
    write_shards,
)
from ascend_cpt.weights.hf_folder import list_companions
from ascend_cpt.weights.merge.check import open_models
from ascend_cpt.weights.merge.methods import (
    SLERP,
    TASK_ARITHMETIC,
    Angle,
    Float32,
    add_task_vectors,
    choose_slerp_weights,
    combine_linearly,
)
from ascend_cpt.weights.merge.recipe import Recipe, Values
from ascend_cpt.weights.safetensors_file import TensorInfo

RECORD_NAME = "merge.json"
PART_ELEMENTS = 1 << 22
"""Elements of a tensor that are merged at a time. With 3 models, this takes about 100 MB in float32."""


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Options for the merged folder."""

    dtype: str | None = None
    """Data type of the weights; None: that of each tensor in `like`."""
    max_shard_bytes: int = DEFAULT_SHARD_BYTES


class Merge:
    """A recipe whose models are checked.

    Args:
        recipe: What to merge.
        like: The model whose config.json, tokenizer and data type the merged model gets: one of the recipe's.
        options: dtype and shard size.

    Raises:
        CheckpointError: a folder is damaged, or the models cannot be merged.
        ConfigError: the family of a model is not supported.
    """

    def __init__(self, recipe: Recipe, *, like: Path, options: MergeOptions) -> None:
        self.recipe = recipe
        self.models, self.warnings = open_models(recipe.inputs, like=like)
        self.like = next(model for model in self.models if model.path == like)
        self._options = options
        self._infos = [
            TensorInfo(name=name, dtype=self._choose_dtype(name), shape=shape)
            for name, shape in list_hf_shapes(self.like.sizes).items()
        ]

    def write(self, values: Values, target: Path, *, card: str | None = None) -> Summary:
        """Write the merged model to `target`, with merge.json and, if given, the text of README.md.

        Raises:
            CheckpointError: `target` exists or cannot be written, or a merged value is not finite or not in the range
                of the data type.
        """
        # Of the bytes of all tensors, in the order of the table, so that a record identifies the weights.
        checksums = [xxhash.xxh3_128() for _ in self.models]
        with create_folder(target) as folder:
            write_shards(
                folder,
                self._infos,
                self._iterate(values, checksums),
                name_file=name_hf_file,
                max_shard_bytes=self._options.max_shard_bytes,
            )
            write_config(folder, self.like.config, name_main_dtype(self._infos))
            for companion in list_companions(self.like.path):
                shutil.copyfile(companion, folder / companion.name)
            write_json(folder / RECORD_NAME, self._make_record(values, checksums))
            if card is not None:
                (folder / CARD_NAME).write_text(card, encoding="utf-8")
        return summarize(target, self._infos)

    def _choose_dtype(self, name: str) -> str:
        return DTYPES[self._options.dtype] if self._options.dtype else self.like.tensors[name].dtype

    def _iterate(self, values: Values, checksums: Sequence[xxhash.xxh3_128]) -> Iterator[tuple[str, Array]]:
        for info in self._infos:
            weights = values.weights if values.t is None else self._choose_slerp_weights(values.t, info)
            merged = np.empty(info.num_elements, STORAGE[info.dtype])
            for first, stop in _list_parts(info.num_elements):
                parts = self._read_parts(info.name, first, stop, checksums)
                with np.errstate(over="ignore", invalid="ignore"):  # checked below
                    result = self._combine(parts, weights)
                if not np.isfinite(result).all():
                    raise CheckpointError(self._explain_not_finite(info.name, parts))
                merged[first:stop] = cast(result, "F32", info.dtype, info.name)
            yield info.name, merged.reshape(info.shape)

    def _read_parts(
        self, name: str, first: int, stop: int, checksums: Sequence[xxhash.xxh3_128] | None = None
    ) -> list[Float32]:
        """Return the elements `first` to `stop` of a tensor of each model in float32."""
        parts = []
        for index, model in enumerate(self.models):
            part = model.read_part(name, first, stop)
            if checksums is not None:
                checksums[index].update(part.data)
            parts.append(to_float32(part, model.tensors[name].dtype))
        return parts

    def _choose_slerp_weights(self, t: float, info: TensorInfo) -> tuple[float, float]:
        angle = Angle()
        for first, stop in _list_parts(info.num_elements):
            angle.add(*self._read_parts(info.name, first, stop))
        return choose_slerp_weights(t, angle.cosine())

    def _combine(self, parts: Sequence[Float32], weights: Sequence[float]) -> Float32:
        normalize = self.recipe.normalize
        if self.recipe.method == TASK_ARITHMETIC:
            return add_task_vectors(parts[0], parts[1:], weights, normalize=normalize)
        return combine_linearly(parts, weights, normalize=normalize)

    def _explain_not_finite(self, name: str, parts: Sequence[Float32]) -> str:
        for model, part in zip(self.models, parts, strict=True):
            if not np.isfinite(part).all():
                return f"{model.path}: {name} contains NaN or infinity; export another checkpoint"
        return f"{name}: merged values are outside the range of float32; use smaller weights"

    def _make_record(self, values: Values, checksums: Sequence[xxhash.xxh3_128]) -> dict[str, Any]:
        weights: Sequence[float | None] = values.weights
        if self.recipe.method == SLERP:
            weights = [None]
        if self.recipe.base is not None:
            weights = [None, *weights]
        inputs = [
            {
                "path": str(model.path),
                **({"weight": weight} if weight is not None else {}),
                "tensors": f"xxh3-128:{checksum.hexdigest()}",
            }
            for model, weight, checksum in zip(self.models, weights, checksums, strict=True)
        ]
        return {
            "merge_method": self.recipe.method,
            **({"base_model": inputs.pop(0)} if self.recipe.base is not None else {}),
            "models": inputs,
            "parameters": {"t": values.t} if self.recipe.method == SLERP else {"normalize": self.recipe.normalize},
            "dtype": "float32",
            "out_dtype": name_main_dtype(self._infos),
            "config_and_tokenizer": str(self.like.path),
            "ascend_cpt": __version__,
        }


def _list_parts(num_elements: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last index + 1 of each part."""
    for first in range(0, num_elements, PART_ELEMENTS):
        yield first, min(first + PART_ELEMENTS, num_elements)
