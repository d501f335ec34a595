"""The inputs to the memory and time estimates: model, layout, batch and a few switches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.model.sizes import ModelSizes
from ascend_cpt.model.tensor_layout import Shape

KILOBYTE = 1024
GIGABYTE = 1024**3  # as MindSpore and npu-smi count it
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOAT32_BYTES = DTYPE_BYTES["float32"]


@dataclass(frozen=True, kw_only=True)
class TrainingCase:
    """A model with its layout and batch on a cluster."""

    model: ModelSizes
    parameters: Mapping[str, Shape]
    """Shape of every parameter of the model and of its adapters, by MindFormers name."""
    frozen: frozenset[str] = frozenset()
    """The parameters that are not trained. They have no gradients and no optimizer states."""
    layout: ParallelLayout
    layers_per_stage: tuple[int, ...]
    seq_length: int
    micro_batch_size: int
    num_micro_batches: int
    """Micro batches per optimizer step: pipeline micro batches, or gradient accumulation steps."""
    sequence_parallel: bool = False
    recomputed_layers: tuple[int, ...]
    """Number of layers of each stage whose activations are recomputed in the backward pass."""
    recomputes_selected: bool = False
    """Whether the other layers recompute SiLU (`select_recompute`)."""
    shards_optimizer: bool = True
    """Whether weights and optimizer states are sharded over the data-parallel ranks."""
    optimizer_shard_size: int | None = None
    """Maximum number of these ranks (`optimizer_weight_shard_size`); None: all that hold the same part."""
    shards_gradients: bool = False
    """Whether accumulated gradients are sharded, too (`gradient_accumulation_shard`)."""
    shard_threshold_bytes: int = 64 * KILOBYTE
    """Smaller parameters are not sharded over the data-parallel ranks."""
    regathers_weights: bool = False
    """Whether gathered weights are freed after forward (`parallel_optimizer_comm_recompute`)."""
    swaps_optimizer: bool = False
    """Whether the optimizer states are in the host's memory (`optimizer.swap`)."""
    interleave: int = 1
    """Parts of the model on every stage (`pp_interleave_num`)."""
    can_interleave: bool = False
    """Whether a search may choose other parts than one."""
    overlaps_exchange: bool = False
    """Whether communication between tensor-parallel ranks overlaps with computation. Only in published runs:
    MindFormers' legacy models with `fine_grain_interleave`, MindSpeed-LLM with `use-mc2`."""
    compresses_mask: bool = True
    """Whether attention uses a compressed mask instead of one of seq_length²."""
    loss_chunks: int = 1
    """Chunks of the rows whose logits exist one after another (`cpt.loss_chunks`)."""
    can_chunk_loss: bool = True
    """Whether the other settings of the run allow several chunks."""
    residuals_in_float32: bool = False
    """Whether residuals are added in float32 (`fp32_residual_connection`)."""
    param_bytes: int = 4
    compute_bytes: int = 2

    @property
    def num_parameters(self) -> int:
        """Number of parameters in the whole model, with adapters."""
        return sum(math.prod(shape) for shape in self.parameters.values())

    @property
    def num_trained(self) -> int:
        """Number of trained parameters in the whole model."""
        return sum(math.prod(shape) for name, shape in self.parameters.items() if name not in self.frozen)

    @property
    def tokens_per_rank(self) -> int:
        """Tokens per rank in a micro batch, before sequence parallelism."""
        return self.micro_batch_size * self.seq_length // self.layout.context_parallel

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimizer step across the cluster."""
        return self.micro_batch_size * self.num_micro_batches * self.layout.data_parallel * self.seq_length

    @property
    def num_stages(self) -> int:
        return self.layout.pipeline_parallel

    @property
    def accumulates(self) -> bool:
        """Whether gradients are accumulated over several micro batches, which needs a buffer."""
        return self.num_micro_batches > 1 or self.num_stages > 1

    def has_layer(self, stage: int, layer: int) -> bool:
        """Return whether a stage has the layer with this index."""
        first = 0
        for part in split_parts(self.layers_per_stage, self.interleave):
            start = first + sum(part[:stage])
            if start <= layer < start + part[stage]:
                return True
            first += sum(part)
        return False


def split_layers(num_layers: int, num_stages: int, offset: Any = None, num_parts: int = 1) -> tuple[int, ...]:
    """Return the number of layers in every stage: the even share plus the stage's entries in `offset`.

    With interleaving, `offset` has a list for each of the `num_parts` parts of the model on every stage.

    Raises:
        ValueError: when the numbers do not add up to `num_layers`, or the parts of a stage are not as in `split_parts`.
    """
    lists: Sequence[Any] = offset if isinstance(offset, list) else [[0] * num_stages] * num_parts
    if num_parts == 1 and isinstance(offset, list):
        lists = [offset]
    share = num_layers // (num_stages * num_parts)
    parts = [[share + more for more in extra] for extra in lists]
    layers = tuple(sum(stage) for stage in zip(*parts, strict=True))
    if len(layers) != num_stages or sum(layers) != num_layers or min(layers) < num_parts:
        raise ValueError(f"{list(layers)} layers in {num_stages} stages do not add up to {num_layers} layers")
    if parts != split_parts(layers, num_parts):
        raise ValueError(f"the parts {parts} are not {split_parts(layers, num_parts)}")
    return layers


def split_parts(layers_per_stage: Sequence[int], num_parts: int) -> list[list[int]]:
    """Return the layers of every stage in each of its parts: an even share, and one more in the first parts."""
    return [
        [layers // num_parts + (part < layers % num_parts) for layers in layers_per_stage] for part in range(num_parts)
    ]
