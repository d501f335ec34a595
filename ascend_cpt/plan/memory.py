"""Estimates a rank's peak memory during a training step, per pipeline stage.

MindSpore's allocations were read tensor by tensor from its memory tracker on the simulated device. docs/planning.md
compares the estimates with the measured peaks. Kernel workspaces and memory outside MindSpore's pool (driver, HCCL
buffers) are not included; see `estimate.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ascend_cpt.plan.activations import (
    count_backward_bytes,
    count_loss_bytes,
    count_micro_batches_in_flight,
    count_saved_bytes,
)
from ascend_cpt.plan.case import FLOAT32_BYTES, TrainingCase
from ascend_cpt.plan.slices import OUTPUT, StageSlices, count_slices

ADAM_STATES = 2  # first and second moments, float32
# Unfused AdamW keeps the scaled gradient and both new moments of all parameters at the same time.
UPDATE_COPIES = 3
# Compressed attention mask, rotary tables, micro-batch inputs, scalars.
CONSTANT_BYTES = 12 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Bytes allocated at one moment of the step, excluding weights, optimizer states and accumulated gradients."""

    name: str
    """`backward` of a layer, `loss`, `reduce` of the gradients or `update` of the weights."""
    gradients_bytes: int = 0
    activations_bytes: int = 0
    communication_bytes: int = 0
    """Weights gathered from the other data-parallel ranks, in compute_dtype."""

    @property
    def total_bytes(self) -> int:
        return self.gradients_bytes + self.activations_bytes + self.communication_bytes


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """Bytes on each rank of a pipeline stage."""

    stage: int
    num_layers: int
    num_parameters: int
    """Parameters of this stage after tensor parallel."""
    num_stored_parameters: int
    """Of these, the number a rank stores after optimizer sharding."""
    weights_bytes: int
    optimizer_bytes: int
    accumulated_bytes: int
    """Sums of gradients over micro batches."""
    training: Moment
    """The peak of forward and backward."""
    updating: Moment
    """The peak after them."""
    constants_bytes: int

    @property
    def peak(self) -> Moment:
        """The peak of the whole step."""
        return max(self.training, self.updating, key=lambda moment: moment.total_bytes)

    @property
    def peak_bytes(self) -> int:
        """Peak of MindSpore's pool, excluding workspaces and fragmentation."""
        return self.static_bytes + self.peak.total_bytes

    @property
    def static_bytes(self) -> int:
        """Memory that is allocated throughout training."""
        return self.weights_bytes + self.optimizer_bytes + self.accumulated_bytes + self.constants_bytes


def estimate_memory(case: TrainingCase) -> tuple[StageMemory, ...]:
    """Return the memory of every pipeline stage."""
    return tuple(estimate_stage_memory(case, stage) for stage in range(case.num_stages))


def estimate_stage_memory(case: TrainingCase, stage: int) -> StageMemory:
    """Return the memory of one pipeline stage."""
    slices = count_slices(case, stage)
    return StageMemory(
        stage=stage,
        num_layers=case.layers_per_stage[stage],
        num_parameters=slices.num_tensor_elements,
        num_stored_parameters=slices.num_stored_elements,
        weights_bytes=slices.weights_bytes,
        optimizer_bytes=0 if case.swaps_optimizer else slices.trained_stored_elements * ADAM_STATES * FLOAT32_BYTES,
        accumulated_bytes=_count_accumulated_bytes(case, slices) if case.accumulates else 0,
        training=max(_list_training_moments(case, stage, slices), key=lambda moment: moment.total_bytes),
        updating=max(_list_updating_moments(slices), key=lambda moment: moment.total_bytes),
        constants_bytes=CONSTANT_BYTES + (0 if case.compresses_mask else _count_mask_bytes(case)),
    )


def _count_mask_bytes(case: TrainingCase) -> int:
    """Return the bytes of the full masks: one in compute_dtype, and one byte mask per row of a micro batch."""
    return case.seq_length**2 * (case.compute_bytes + case.micro_batch_size)


def _list_training_moments(case: TrainingCase, stage: int, slices: StageSlices) -> list[Moment]:
    in_flight = count_micro_batches_in_flight(case, stage)
    gathered = slices.gathered_elements * case.compute_bytes
    # The gathered embedding is freed after the forward pass of the last micro batch. It keeps params_dtype.
    if slices.embedding is not None and slices.embedding.is_sharded and case.num_micro_batches > in_flight:
        gathered += slices.embedding.num_tensor_elements * case.param_bytes
    gathered += _count_tied_output_bytes(case, stage, slices)
    stored = 0 if case.accumulates else FLOAT32_BYTES * slices.trained_stored_elements
    backward = Moment(
        name="backward",
        gradients_bytes=stored,
        activations_bytes=count_backward_bytes(case, stage),
        communication_bytes=gathered,
    )
    if stage != case.num_stages - 1:
        return [backward]
    loss = Moment(
        name="loss",
        # The optimizer's products that need no gradients. With whole logits, they come later.
        gradients_bytes=stored if case.loss_chunks > 1 else 0,
        activations_bytes=count_saved_bytes(case, stage) + count_loss_bytes(case, stage),
        communication_bytes=gathered,
    )
    return [backward, loss]


def _list_updating_moments(slices: StageSlices) -> list[Moment]:
    if not slices.trained_stored_elements:
        return [Moment(name="update")]  # all of the stage's weights are frozen
    stored = slices.trained_stored_elements * FLOAT32_BYTES
    largest_tensor = slices.largest_trained_tensor * FLOAT32_BYTES
    largest_stored = slices.largest_trained_stored * FLOAT32_BYTES
    return [
        # Gradients are scaled parameter by parameter, then reduced to the stored shard.
        Moment(name="reduce", gradients_bytes=stored + 2 * largest_tensor),
        Moment(name="update", gradients_bytes=UPDATE_COPIES * stored + largest_stored),
    ]


def _count_accumulated_bytes(case: TrainingCase, slices: StageSlices) -> int:
    """Return the bytes of accumulated gradients, which have the parameters' shapes and dtypes."""
    return slices.trained_stored_bytes if case.shards_gradients else slices.trained_tensor_bytes


def _count_tied_output_bytes(case: TrainingCase, stage: int, slices: StageSlices) -> int:
    """Return the bytes of a tied embedding on the last stage, which receives it if it is not also the first."""
    if OUTPUT in case.parameters or stage != case.num_stages - 1:
        return 0
    assert slices.embedding is not None
    elements = slices.embedding.num_tensor_elements
    sent = 2 * case.param_bytes if case.num_stages > 1 else 0  # the received weight and a buffer of the same size
    return elements * (case.compute_bytes + sent)
