"""Low-rank adapters (LoRA): their settings, parameters, and mapping to the modules of a Hugging Face model.

An adapter adds scale · B·A to the weight of a linear module; A is (rank, in) and B is (out, rank). MindFormers joins
some modules to one layer. Such a layer has one parameter `lora_a` with the A of all its adapted modules on top of each
other, and one parameter `lora_b` with a row for every row of the layer's weight, in the same order. A row of B that
belongs to a module without an adapter is zero and is not trained.
"""

from __future__ import annotations

import difflib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.model.families import VOCABULARY_TENSORS
from ascend_cpt.model.parameters import Group, list_groups
from ascend_cpt.model.sizes import ModelSizes
from ascend_cpt.model.tensor_layout import Array, Shape

LORA_A, LORA_B = ".lora_a", ".lora_b"
_WEIGHT = ".weight"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The adapters of a run. `targets` are names of modules in a Hugging Face layer, such as `q_proj`."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        """The factor of B·A: alpha / rank, or alpha / √rank for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


@dataclass(frozen=True, kw_only=True)
class AdaptedLayer:
    """A linear layer of MindFormers with adapters."""

    group: Group
    sizes: ModelSizes
    rank: int
    is_adapted: tuple[bool, ...]
    """Whether each module in the layer has an adapter."""

    @property
    def name(self) -> str:
        """MindFormers' name of the layer, without the suffix of its weight."""
        return self.group.mindformers.removesuffix(_WEIGHT)

    @property
    def modules(self) -> list[str]:
        """The Hugging Face names of the adapted modules."""
        return [
            name.removesuffix(_WEIGHT) for name, adapted in zip(self.group.hf, self.is_adapted, strict=True) if adapted
        ]

    @property
    def shapes(self) -> dict[str, Shape]:
        """MindFormers' names and shapes of the layer's two parameters."""
        parts = self._weight_shapes
        num_rows = sum(rows for rows, _ in parts)
        return {
            self.name + LORA_A: (sum(self.is_adapted) * self.rank, parts[0][1]),
            self.name + LORA_B: (num_rows, self.rank),
        }

    @property
    def _weight_shapes(self) -> list[tuple[int, int]]:
        return [(rows, columns) for rows, columns in self.group.row.list_hf_shapes(self.sizes)]

    def make_a(self, seed: int) -> NDArray[np.float32]:
        """Return the initial `lora_a`: uniform in ±1/√in, as in PEFT. Every module has its own random stream."""
        _, columns = self._weight_shapes[0]
        bound = 1 / math.sqrt(columns)
        parts = [
            np.random.default_rng([seed, zlib.crc32(module.encode())]).uniform(-bound, bound, (self.rank, columns))
            for module in self.modules
        ]
        whole: NDArray[np.float32] = np.concatenate(parts).astype(np.float32)
        return whole

    def make_mask(self) -> NDArray[np.float32]:
        """Return (rows, adapted modules × rank): 1 where a row of the layer belongs to the module whose A this is."""
        parts, columns, done = [], sum(self.is_adapted) * self.rank, 0
        for (rows, _), adapted in zip(self._weight_shapes, self.is_adapted, strict=True):
            part = np.zeros((rows, columns), np.float32)
            if adapted:
                part[:, done : done + self.rank] = 1
                done += self.rank
            parts.append(part)
        mask: NDArray[np.float32] = self.group.row.layout.join(parts, self.sizes)
        return mask

    def split(self, lora_a: Array, lora_b: Array) -> Iterator[tuple[str, Array, Array]]:
        """Yield (Hugging Face name, A, B) of every adapted module."""
        all_b = self.group.row.layout.split(lora_b, self.sizes)
        adapted_b = [part for part, adapted in zip(all_b, self.is_adapted, strict=True) if adapted]
        all_a = np.split(lora_a, len(adapted_b))
        yield from zip(self.modules, all_a, adapted_b, strict=True)

    def compute_delta(self, lora_a: NDArray[np.float32], lora_b: NDArray[np.float32], scale: float) -> Array:
        """Return scale · B·A, which is added to the layer's weight, float32."""
        deltas = {name: np.float32(scale) * (b @ a) for name, a, b in self.split(lora_a, lora_b)}
        parts = [
            deltas.get(name.removesuffix(_WEIGHT), np.zeros(shape, np.float32))
            for name, shape in zip(self.group.hf, self._weight_shapes, strict=True)
        ]
        return self.group.row.layout.join(parts, self.sizes)


def list_adapted_layers(sizes: ModelSizes, settings: LoraSettings) -> list[AdaptedLayer]:
    """Return the layers with adapters. The settings were checked by `find_lora_problem`."""
    layers = []
    for group in _list_linear(sizes):
        is_adapted = tuple(_get_module(name) in settings.targets for name in group.hf)
        if any(is_adapted):
            layers.append(AdaptedLayer(group=group, sizes=sizes, rank=settings.rank, is_adapted=is_adapted))
    return layers


def list_adapter_shapes(sizes: ModelSizes, settings: LoraSettings) -> dict[str, Shape]:
    """Return name → shape for every parameter of the adapters."""
    return {name: shape for layer in list_adapted_layers(sizes, settings) for name, shape in layer.shapes.items()}


def count_adapter_parameters(sizes: ModelSizes, settings: LoraSettings) -> int:
    """Return the number of trained parameters: those of every A and B."""
    num = 0
    for layer in list_adapted_layers(sizes, settings):
        shapes = layer.group.row.list_hf_shapes(sizes)
        num += sum(settings.rank * sum(shape) for shape, on in zip(shapes, layer.is_adapted, strict=True) if on)
    return num


def find_lora_problem(sizes: ModelSizes, settings: LoraSettings) -> str:
    """Return the end of a message about the settings, or "" if they fit the model."""
    if sizes.experts is not None:
        return (
            "adapters are not supported for a mixture of experts; remove it, or train some weights with cpt.trainable"
        )
    if not 0 < settings.alpha < math.inf:
        return f"alpha must be above 0, got {settings.alpha:g}"
    groups = _list_linear(sizes)
    smallest = min(min(shape) for group in groups for shape in group.row.list_hf_shapes(sizes))
    if settings.rank > smallest:
        return f"rank {settings.rank} is above {smallest}, the smallest size of a linear module; lower it"
    modules = list(dict.fromkeys(_get_module(name) for group in groups for name in group.hf))
    return _find_target_problem(settings.targets, modules)


def _find_target_problem(targets: Sequence[str], modules: Sequence[str]) -> str:
    if not targets:
        return f"targets is empty; name modules: {', '.join(modules)}"
    vocabulary = {_get_module(name) for name in VOCABULARY_TENSORS}
    for target in targets:
        if target in vocabulary:
            return f"targets: {target!r}: adapters of the embedding and the output layer are not supported; remove it"
        if target not in modules:
            near = difflib.get_close_matches(target, modules, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(modules)}"
            return f"targets: the model has no module {target!r}; {hint}"
    if len(set(targets)) < len(targets):
        return f"targets: {max(targets, key=targets.count)!r} is listed twice; remove one"
    return ""


def _list_linear(sizes: ModelSizes) -> list[Group]:
    """Return the groups of the linear weights in the decoder layers."""
    return [
        group
        for group in list_groups(sizes)
        if group.row.is_per_layer
        and not group.row.is_per_expert
        and group.mindformers.endswith(_WEIGHT)
        and all(len(shape) == 2 for shape in group.row.list_hf_shapes(sizes))
    ]


def _get_module(name: str) -> str:
    """Return the last part of a module's name: q_proj for model.layers.0.self_attn.q_proj.weight."""
    return name.removesuffix(_WEIGHT).rpartition(".")[2]


def read_settings(record: Mapping[str, object]) -> LoraSettings:
    """Return settings from a record as in a run's fingerprint.

    Raises:
        ValueError, TypeError: an entry is missing or has another type.
    """
    rank, alpha, targets = record.get("rank"), record.get("alpha"), record.get("targets")
    if type(rank) is not int or not isinstance(alpha, (int, float)) or not isinstance(targets, (list, tuple)):
        raise TypeError("rank, alpha or targets is missing or has an unexpected type")
    if not 0 < rank < 1 << 16 or not all(isinstance(target, str) for target in targets):
        raise ValueError("rank or targets has an unexpected value")
    return LoraSettings(
        rank=rank,
        alpha=float(alpha),
        targets=tuple(str(target) for target in targets),
        rank_stabilized=record.get("rank_stabilized") is True,
    )
