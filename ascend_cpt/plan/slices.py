"""Which part of each parameter a rank holds: the rules by which MindFormers and MindSpore cut them.

Tensor parallel cuts one axis, chosen by the parameter's name. The optimizer's sharding then cuts the first axis of what
is left over all ranks that hold the same part. `tests/integration/test_plan_compile.py` holds these rules against what
MindSpore says after compiling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ascend_cpt.model.tensor_layout import Shape
from ascend_cpt.plan.case import TrainingCase

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
LAYER_PREFIX = "decoder.layers."

# Ending of a parameter's name → the axis that tensor parallel cuts. What is not named is whole on every rank.
TENSOR_AXES = {
    EMBEDDING: 0,
    OUTPUT: 0,
    "self_attention.linear_qkv.weight": 0,
    "self_attention.linear_qkv.bias": 0,
    "self_attention.linear_proj.weight": 1,
    "mlp.linear_fc1.weight": 0,
    "mlp.linear_fc2.weight": 1,
}


@dataclass(frozen=True, kw_only=True)
class ParameterSlice:
    """A parameter on one rank. Shapes are in elements."""

    name: str
    shape: Shape
    tensor_shape: Shape
    """After tensor parallel: what the rank computes with, and the shape of its gradient."""
    stored_shape: Shape
    """After the optimizer's sharding as well: what the rank keeps, with its optimizer states."""

    @property
    def is_sharded(self) -> bool:
        """Whether the optimizer's sharding cuts it, so that it is gathered before use."""
        return self.stored_shape != self.tensor_shape

    @property
    def num_tensor_elements(self) -> int:
        return math.prod(self.tensor_shape)

    @property
    def num_stored_elements(self) -> int:
        return math.prod(self.stored_shape)


def slice_parameters(case: TrainingCase, stage: int) -> list[ParameterSlice]:
    """Return what every rank of a pipeline stage holds of the parameters of that stage."""
    return [
        _slice_parameter(case, name, shape) for name, shape in case.parameters.items() if is_in_stage(case, name, stage)
    ]


def is_in_stage(case: TrainingCase, name: str, stage: int) -> bool:
    """Return whether a stage uses a parameter: its own layers; the first the embedding, the last norm and output.

    A tied embedding is the output as well, and so belongs to the first and the last stage.
    """
    last = case.num_stages - 1
    if name == EMBEDDING:
        is_tied = OUTPUT not in case.parameters
        return stage == 0 or (is_tied and stage == last)
    if name in (OUTPUT, FINAL_NORM):
        return stage == last
    layer = int(name.removeprefix(LAYER_PREFIX).partition(".")[0])
    first = case.first_layer(stage)
    return first <= layer < first + case.layers_per_stage[stage]


def _slice_parameter(case: TrainingCase, name: str, shape: Shape) -> ParameterSlice:
    axis = next((axis for ending, axis in TENSOR_AXES.items() if name.endswith(ending)), None)
    tensor = case.layout.tensor_parallel
    replicas = case.layout.data_parallel * case.layout.context_parallel
    cut = list(shape)
    if axis is None:
        # A parameter that no tensor parallel rank cuts is the same on all of them: they share its optimizer states too.
        replicas *= tensor
    else:
        assert cut[axis] % tensor == 0, f"{name}: {shape} is not divisible by model_parallel {tensor}"
        cut[axis] //= tensor
    stored = list(cut)
    # The threshold is compared with the whole parameter, before tensor parallel.
    num_bytes = math.prod(shape) * case.param_bytes
    # The size asked for is the most; one that does not divide the ranks with the same part leaves the parameter whole.
    shards = min(case.optimizer_shard_size or replicas, replicas)
    divides = replicas % shards == 0 and cut[0] % shards == 0
    if case.shards_optimizer and num_bytes >= case.shard_threshold_bytes and divides:
        stored[0] //= shards
    return ParameterSlice(name=name, shape=shape, tensor_shape=tuple(cut), stored_shape=tuple(stored))
