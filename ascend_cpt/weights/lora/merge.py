"""Adds adapters to the weights that they were trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.lora import LORA_A, LORA_B, LoraSettings, list_adapted_layers, list_adapter_shapes
from ascend_cpt.model.parameters import list_groups
from ascend_cpt.model.sizes import ModelSizes
from ascend_cpt.weights.dtypes import Array, cast, to_float32
from ascend_cpt.weights.hf_folder import HfFolder
from ascend_cpt.weights.safetensors_file import TensorInfo
from ascend_cpt.weights.sources import TensorSource


class FromHf:
    """The weights of a Hugging Face folder under their MindFormers names, in float32."""

    def __init__(self, folder: HfFolder) -> None:
        self.path = folder.path
        self._folder = folder
        self._groups = {group.mindformers: group for group in list_groups(folder.sizes)}
        self.tensors = {
            name: TensorInfo(
                name=name, dtype="F32", shape=group.row.layout.join_shapes(group.row.list_hf_shapes(folder.sizes))
            )
            for name, group in self._groups.items()
        }

    def read(self, name: str) -> Array:
        parts = [
            to_float32(self._folder.read(part), self._folder.tensors[part].dtype) for part in self._groups[name].hf
        ]
        return self._groups[name].row.layout.join(parts, self._folder.sizes)


class Adapters:
    """The adapters in a checkpoint.

    Raises:
        CheckpointError: the checkpoint does not have exactly the parameters of the adapters.
    """

    def __init__(self, source: TensorSource, sizes: ModelSizes, settings: LoraSettings) -> None:
        self.path, self.settings, self.sizes = source.path, settings, sizes
        self._source = source
        self._layers = list_adapted_layers(sizes, settings)
        shapes = list_adapter_shapes(sizes, settings)
        for name in sorted(shapes.keys() | source.tensors.keys()):
            found = source.tensors[name].shape if name in source.tensors else None
            if found != shapes.get(name):
                raise CheckpointError(
                    f"{source.path}: {name} does not fit the adapters: {found} in the checkpoint, expected "
                    f"{shapes.get(name)}"
                )

    def read_delta(self, weight: str) -> NDArray[np.float32] | None:
        """Return what is added to a MindFormers weight, or None if it has no adapters."""
        layer = next((layer for layer in self._layers if layer.group.mindformers == weight), None)
        if layer is None:
            return None
        lora_a, lora_b = self._read(layer.name + LORA_A), self._read(layer.name + LORA_B)
        return layer.compute_delta(lora_a, lora_b, self.settings.scale)

    def iterate(self) -> Iterator[tuple[str, Array, Array]]:
        """Yield (Hugging Face module, A, B), float32."""
        for layer in self._layers:
            yield from layer.split(self._read(layer.name + LORA_A), self._read(layer.name + LORA_B))

    def _read(self, name: str) -> NDArray[np.float32]:
        return to_float32(self._source.read(name), self._source.tensors[name].dtype)


class Merged:
    """A base with adapters: base + scale · B·A, computed in float32 and returned in `dtype`."""

    def __init__(self, base: TensorSource, adapters: Adapters, dtype: str) -> None:
        self.path: Path = adapters.path
        self._base, self._adapters, self._dtype = base, adapters, dtype
        self.tensors = {
            name: TensorInfo(name=name, dtype=dtype, shape=info.shape) for name, info in base.tensors.items()
        }

    def read(self, name: str) -> Array:
        weight = to_float32(self._base.read(name), self._base.tensors[name].dtype)
        delta = self._adapters.read_delta(name)
        return cast(weight if delta is None else weight + delta, "F32", self._dtype, name)
