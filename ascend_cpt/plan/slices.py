"""Computes the part of each parameter that a rank holds, using the sharding rules of MindFormers and MindSpore.

Tensor parallelism shards one axis, chosen by the parameter's name. The optimizer then shards the result's first axis
over all ranks that hold the same part. `tests/integration/test_plan_compile.py` compares these rules with the shapes
that MindSpore compiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from ascend_cpt.model.lora import LORA_A, LORA_B
from ascend_cpt.model.tensor_layout import Shape
from ascend_cpt.plan.case import FLOAT32_BYTES, TrainingCase

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
LAYER_PREFIX = "decoder.layers."
QUERY_NORM = f"{LAYER_PREFIX}0.self_attention.q_layernorm.weight"

# Parameter name suffix → the axis that tensor parallelism shards. Other parameters are replicated.
TENSOR_AXES = {
    EMBEDDING: 0,
    OUTPUT: 0,
    "self_attention.linear_qkv.weight": 0,
    "self_attention.linear_qkv.bias": 0,
    "self_attention.linear_proj.weight": 1,
    "mlp.linear_fc1.weight": 0,
    "mlp.linear_fc2.weight": 1,
    # Adapters: B of a column-parallel layer has its rows, and A of a row-parallel layer its columns.
    f"self_attention.linear_qkv{LORA_B}": 0,
    f"mlp.linear_fc1{LORA_B}": 0,
    f"self_attention.linear_proj{LORA_A}": 1,
    f"mlp.linear_fc2{LORA_A}": 1,
}
EXPERT_NAMES = ("mlp.experts.weight1", "mlp.experts.weight2")
"""Ends of the names of the experts' parameters. Expert parallelism shards their first axis; tensor parallelism none."""


@dataclass(frozen=True, kw_only=True)
class ParameterSlice:
    """A parameter on one rank. Shapes are in elements."""

    name: str
    shape: Shape
    tensor_shape: Shape
    """After tensor or expert parallel: the shape used in computation, and of the gradient."""
    stored_shape: Shape
    """After optimizer sharding: the shape that the rank stores, with its optimizer states."""
    element_bytes: int
    """Of the stored parameter."""
    is_trained: bool = True

    @property
    def is_sharded(self) -> bool:
        """Whether the optimizer shards the parameter, so that it is gathered before use."""
        return self.stored_shape != self.tensor_shape

    @property
    def is_adapter(self) -> bool:
        """Whether the parameter belongs to an adapter."""
        return self.name.endswith((LORA_A, LORA_B))

    @property
    def is_expert(self) -> bool:
        """Whether expert parallelism shards the parameter."""
        return self.name.endswith(EXPERT_NAMES)

    @property
    def num_tensor_elements(self) -> int:
        return math.prod(self.tensor_shape)

    @property
    def num_stored_elements(self) -> int:
        return math.prod(self.stored_shape)


def slice_parameters(case: TrainingCase, stage: int) -> list[ParameterSlice]:
    """Return the slices of a pipeline stage's parameters on each of the stage's ranks."""
    rule = _make_rule(case)
    return [
        _mark_trained(_slice_parameter(name, shape, rule), name not in case.frozen)
        for name, shape in case.parameters.items()
        if is_in_stage(case, name, stage)
    ]


class StageSlices:
    """A stage's distinct slices, the number of parameters with each, and their sums."""

    def __init__(self, counted: list[tuple[ParameterSlice, int]], compute_bytes: int) -> None:
        self.counted = counted
        self.num_stored_elements = sum(number * part.num_stored_elements for part, number in counted)
        self.num_tensor_elements = sum(number * part.num_tensor_elements for part, number in counted)
        self.weights_bytes = sum(number * part.num_stored_elements * part.element_bytes for part, number in counted)
        trained = [(part, number) for part, number in counted if part.is_trained]
        self.trained_stored_elements = sum(number * part.num_stored_elements for part, number in trained)
        self.trained_stored_bytes = sum(
            number * part.num_stored_elements * part.element_bytes for part, number in trained
        )
        self.trained_tensor_bytes = sum(
            number * part.num_tensor_elements * part.element_bytes for part, number in trained
        )
        self.largest_trained_stored = max((part.num_stored_elements for part, _ in trained), default=0)
        self.largest_trained_tensor = max((part.num_tensor_elements for part, _ in trained), default=0)
        self.gathered_elements = sum(
            number * part.num_tensor_elements
            for part, number in counted
            if len(part.shape) > 1
            and part.name != EMBEDDING
            and (part.is_sharded or part.element_bytes != compute_bytes)
        )
        """Elements of the copies used for computation, without the embedding's."""
        self.embedding = next((part for part, _ in counted if part.name == EMBEDDING), None)

    def __iter__(self) -> Iterator[tuple[ParameterSlice, int]]:
        return iter(self.counted)


def count_slices(case: TrainingCase, stage: int) -> StageSlices:
    """Return a stage's distinct slices and the number of parameters with each.

    All decoder layers are alike, so the first layer's slices stand for the others. The layout search needs this to be
    fast. `slice_parameters` names every parameter.
    """
    if case.frozen:
        return StageSlices(_count_partly_frozen(case, stage), case.compute_bytes)
    is_first, is_last = stage == 0, stage == case.num_stages - 1
    parameters, layers = _Parameters(case.parameters), case.layers_per_stage[stage]
    return _count_slices(parameters, _make_rule(case), layers, is_first, is_last, case.compute_bytes)


def _count_partly_frozen(case: TrainingCase, stage: int) -> list[tuple[ParameterSlice, int]]:
    found = []
    for part in _slice_distinct(_Parameters(case.parameters), _make_rule(case)):
        if part.name.startswith(LAYER_PREFIX):
            layers = case.layers_per_stage[stage]
            num_trained = layers - _count_frozen(case, stage, part.name)
            counts = ((part, num_trained), (_mark_trained(part, False), layers - num_trained))
            found += [(one, number) for one, number in counts if number]
        elif is_in_stage(case, part.name, stage):
            found.append((_mark_trained(part, part.name not in case.frozen), 1))
    return found


def _count_frozen(case: TrainingCase, stage: int, first_name: str) -> int:
    """Return the number of a stage's layers in which a parameter is frozen, given its name in the first layer."""
    ending = first_name.removeprefix(f"{LAYER_PREFIX}0")
    layers = (layer for layer in range(sum(case.layers_per_stage)) if case.has_layer(stage, layer))
    return sum(f"{LAYER_PREFIX}{layer}{ending}" in case.frozen for layer in layers)


def _mark_trained(part: ParameterSlice, is_trained: bool) -> ParameterSlice:
    return part if is_trained else replace(part, is_trained=False)


class _Parameters:
    """A model's shapes as a cache key, compared by identity because a search's cases share one mapping."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes

    def __hash__(self) -> int:
        return id(self.shapes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Parameters) and other.shapes is self.shapes


@lru_cache(maxsize=8192)
def _count_slices(
    parameters: _Parameters, rule: _Rule, layers: int, is_first: bool, is_last: bool, compute_bytes: int
) -> StageSlices:
    is_tied = OUTPUT not in parameters.shapes
    present = {EMBEDDING: is_first or (is_tied and is_last), OUTPUT: is_last, FINAL_NORM: is_last}
    return StageSlices(
        [
            (part, layers if part.name.startswith(LAYER_PREFIX) else 1)
            for part in _slice_distinct(parameters, rule)
            if present.get(part.name, True)
        ],
        compute_bytes,
    )


@lru_cache(maxsize=1024)
def _slice_distinct(parameters: _Parameters, rule: _Rule) -> list[ParameterSlice]:
    first = f"{LAYER_PREFIX}0."
    return [
        _slice_parameter(name, shape, rule)
        for name, shape in parameters.shapes.items()
        if name.startswith(first) or not name.startswith(LAYER_PREFIX)
    ]


def is_in_stage(case: TrainingCase, name: str, stage: int) -> bool:
    """Return whether a stage has a parameter. The first stage has the embedding; the last, the norm and output.

    A tied embedding is also the output layer, so the first and the last stage have it.
    """
    last = case.num_stages - 1
    if name == EMBEDDING:
        is_tied = OUTPUT not in case.parameters
        return stage == 0 or (is_tied and stage == last)
    if name in (OUTPUT, FINAL_NORM):
        return stage == last
    layer = int(name.removeprefix(LAYER_PREFIX).partition(".")[0])
    return case.has_layer(stage, layer)


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """Everything that a parameter's slices depend on, apart from its name and shape."""

    tensor: int
    expert: int
    replicas: int
    shards_optimizer: bool
    optimizer_shard_size: int | None
    threshold_bytes: int
    param_bytes: int
    axes: tuple[tuple[str, int], ...]
    """Part of the key, so that cached slices follow a changed `TENSOR_AXES`."""


def _make_rule(case: TrainingCase) -> _Rule:
    return _Rule(
        tensor=case.layout.tensor_parallel,
        expert=case.layout.expert_parallel,
        replicas=case.layout.data_parallel * case.layout.context_parallel,
        shards_optimizer=case.shards_optimizer,
        optimizer_shard_size=case.optimizer_shard_size,
        threshold_bytes=case.shard_threshold_bytes,
        param_bytes=case.param_bytes,
        axes=tuple(TENSOR_AXES.items()),
    )


def _slice_parameter(name: str, shape: Shape, rule: _Rule) -> ParameterSlice:
    axis = next((axis for ending, axis in rule.axes if name.endswith(ending)), None)
    replicas = rule.replicas
    cut = list(shape)
    if axis is None:
        # A parameter without tensor parallelism is replicated on these ranks, which also shard its optimizer states.
        replicas *= rule.tensor
        if name.endswith(EXPERT_NAMES):
            cut[0] //= rule.expert
            replicas //= rule.expert
    else:
        assert cut[axis] % rule.tensor == 0, f"{name}: {shape} is not divisible by model_parallel {rule.tensor}"
        cut[axis] //= rule.tensor
    stored = list(cut)
    # The threshold applies to the whole parameter, before tensor parallelism.
    element_bytes = FLOAT32_BYTES if name.endswith((LORA_A, LORA_B)) else rule.param_bytes
    num_bytes = math.prod(shape) * element_bytes
    # The configured size is a maximum; if it does not divide the number of replicas, the parameter is not sharded.
    shards = min(rule.optimizer_shard_size or replicas, replicas)
    divides = replicas % shards == 0 and cut[0] % shards == 0
    if rule.shards_optimizer and num_bytes >= rule.threshold_bytes and divides:
        stored[0] //= shards
    return ParameterSlice(
        name=name,
        shape=shape,
        tensor_shape=tuple(cut),
        stored_shape=tuple(stored),
        element_bytes=element_bytes,
    )
