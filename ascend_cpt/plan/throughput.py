"""Estimates the time of a training step, its parts, and the throughput.

FLOPs of a device are counted as in Narayanan et al. 2021 (arXiv:2104.04473, appendix), with half of the attention
FLOPs because of the causal mask. The model FLOPs utilization counts full attention as in PaLM (arXiv:2204.02311,
appendix B), like the figure that a run reports. The efficiencies are fitted to figures published by MindFormers;
docs/planning.md lists them with the errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ascend_cpt.model.flops import count_layer_matmul_parameters, count_training_flops_per_token
from ascend_cpt.plan.case import FLOAT32_BYTES, TrainingCase
from ascend_cpt.plan.slices import slice_parameters

BACKWARD_MATMUL = 2.0  # gradients of inputs and of weights
BACKWARD_ATTENTION = 2.5  # FlashAttention recomputes the scores
# Tensors of the size of a micro batch's hidden states exchanged per layer between tensor-parallel ranks.
FORWARD_EXCHANGES = 4
BACKWARD_EXCHANGES = 4
# Float32 tensors of the size of the logits, read or written by the loss and its gradient.
LOGITS_PASSES = 14
# Float32 tensors of the size of the parameters, read or written by the optimizer.
UPDATE_PASSES = 20
SECONDS_PER_DAY = 86400


class Rates(Protocol):
    """Peak rates of a machine; see `machines.Machine`."""

    @property
    def peak_flops(self) -> float: ...
    @property
    def memory_bytes_per_s(self) -> float: ...
    @property
    def node_bytes_per_s(self) -> float: ...
    @property
    def network_bytes_per_s(self) -> float: ...
    @property
    def devices_per_node(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Fractions of the peak rates that are reached, and overheads."""

    matmul: float
    attention: float
    exchange: float
    """Of the link bandwidth; the rest is latency and communication not overlapped with computation."""
    activation_passes: float
    """Number of times that elementwise operators read or write a layer's activations in forward."""
    layer_s: float
    """Fixed time of a layer in forward, for launching its kernels."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step on the slowest pipeline stage."""

    compute_s: float
    """Matrix products, attention, elementwise operators, recomputation."""
    tensor_exchange_s: float
    pipeline_bubble_s: float
    pipeline_exchange_s: float
    data_exchange_s: float
    update_s: float
    tokens: int
    num_devices: int
    model_flops: float
    """FLOPs of the step on all devices, without recomputation."""
    peak_flops: float

    @property
    def step_s(self) -> float:
        return self.compute_s + self.pipeline_bubble_s + self.exchange_s + self.update_s

    @property
    def exchange_s(self) -> float:
        return self.tensor_exchange_s + self.pipeline_exchange_s + self.data_exchange_s

    @property
    def tokens_per_s(self) -> float:
        """Throughput of the whole cluster."""
        return self.tokens / self.step_s

    @property
    def tokens_per_device_s(self) -> float:
        return self.tokens_per_s / self.num_devices

    @property
    def model_flops_utilization(self) -> float:
        """Model FLOPs utilization, 0 to 1; recomputation is not counted."""
        return self.model_flops / (self.step_s * self.num_devices * self.peak_flops)

    def count_days(self, tokens: int) -> float:
        """Return the days that a run of `tokens` takes without interruptions."""
        return tokens / self.tokens_per_s / SECONDS_PER_DAY


@dataclass(frozen=True, kw_only=True)
class _StageTime:
    compute_s: float
    exchange_s: float


def estimate_step(case: TrainingCase, machine: Rates, efficiency: Efficiency) -> StepTime:
    """Return the time of one optimizer step."""
    stages = [_estimate_stage(case, stage, machine, efficiency) for stage in range(case.num_stages)]
    slowest = max(stages, key=lambda stage: stage.compute_s + stage.exchange_s)
    bubble = (case.num_stages - 1) * (slowest.compute_s + slowest.exchange_s)
    data_s, update_s = _estimate_update(case, machine, efficiency)
    sends = 2 * case.num_micro_batches if case.num_stages > 1 else 0
    boundary_bytes = case.tokens_per_rank // _sequence_parts(case) * case.model.hidden_size * case.compute_bytes
    pipeline_rate = _choose_rate(case, machine, case.layout.world_size) * efficiency.exchange
    return StepTime(
        compute_s=case.num_micro_batches * slowest.compute_s,
        tensor_exchange_s=case.num_micro_batches * slowest.exchange_s,
        pipeline_bubble_s=bubble,
        pipeline_exchange_s=sends * boundary_bytes / pipeline_rate,
        data_exchange_s=data_s,
        update_s=update_s,
        tokens=case.tokens_per_step,
        num_devices=case.layout.world_size,
        model_flops=count_training_flops_per_token(case.model, case.seq_length) * case.tokens_per_step,
        peak_flops=machine.peak_flops,
    )


def _count_layer_attention(case: TrainingCase) -> float:
    """Return forward FLOPs of scores and weighted values for one token, over half of the sequence on average."""
    return 2.0 * case.seq_length * case.model.query_size


def _estimate_stage(case: TrainingCase, stage: int, machine: Rates, efficiency: Efficiency) -> _StageTime:
    """Return the times of one micro batch, forward and backward."""
    layers = case.layers_per_stage[stage]
    recomputed = min(case.recomputed_layers[stage], layers)
    tensor, tokens = case.layout.tensor_parallel, case.tokens_per_rank
    matmul = 2.0 * count_layer_matmul_parameters(case.model) * ((1 + BACKWARD_MATMUL) * layers + recomputed)
    attention = _count_layer_attention(case) * ((1 + BACKWARD_ATTENTION) * layers + recomputed)
    logits_s = 0.0
    if stage == case.num_stages - 1:
        matmul += (1 + BACKWARD_MATMUL) * 2 * case.model.hidden_size * case.model.vocab_size
        logits_bytes = tokens * case.model.vocab_size / tensor * FLOAT32_BYTES
        logits_s = LOGITS_PASSES * logits_bytes / machine.memory_bytes_per_s
    elementwise = efficiency.activation_passes * _count_elementwise_bytes(case) * (3 * layers + recomputed)
    compute_s = (
        tokens / tensor * matmul / (machine.peak_flops * efficiency.matmul)
        + tokens / tensor * attention / (machine.peak_flops * efficiency.attention)
        + elementwise / machine.memory_bytes_per_s
        + efficiency.layer_s * (3 * layers + recomputed)
        + logits_s
    )
    exchanges = (FORWARD_EXCHANGES + BACKWARD_EXCHANGES) * layers + (FORWARD_EXCHANGES - 1) * recomputed
    exchange_bytes = tokens * case.model.hidden_size * case.compute_bytes * (tensor - 1) / tensor
    rate = _choose_rate(case, machine, tensor) * efficiency.exchange
    exchange_s = exchanges * exchange_bytes / rate + _estimate_context_exchange(case, layers, recomputed, rate)
    return _StageTime(compute_s=compute_s, exchange_s=exchange_s)


def _estimate_context_exchange(case: TrainingCase, layers: int, recomputed: int, rate: float) -> float:
    """Return seconds for gathering the keys and values of the sequence's other parts and reducing their gradients."""
    parts = case.layout.context_parallel
    kv_bytes = 2 * case.tokens_per_rank * case.model.kv_size / case.layout.tensor_parallel * case.compute_bytes
    return (2 * layers + recomputed) * kv_bytes * (parts - 1) / rate


def _count_elementwise_bytes(case: TrainingCase) -> float:
    model, tensor = case.model, case.layout.tensor_parallel
    hidden = case.tokens_per_rank / _sequence_parts(case) * model.hidden_size * FLOAT32_BYTES
    inner = case.tokens_per_rank / tensor * (model.query_size + model.kv_size + 2 * model.intermediate_size)
    return hidden + inner * case.compute_bytes


def _estimate_update(case: TrainingCase, machine: Rates, efficiency: Efficiency) -> tuple[float, float]:
    """Return seconds of data-parallel communication and of the optimizer, on the largest stage."""
    slices = max(
        (slice_parameters(case, stage) for stage in range(case.num_stages)),
        key=lambda parts: sum(part.num_tensor_elements for part in parts),
    )
    tensor_elements = sum(part.num_tensor_elements for part in slices)
    stored_elements = sum(part.num_stored_elements for part in slices)
    replicas = case.layout.data_parallel * case.layout.context_parallel
    exchanged = tensor_elements * (FLOAT32_BYTES + case.compute_bytes) * (replicas - 1) / replicas
    rate = _choose_rate(case, machine, case.layout.tensor_parallel * replicas) * efficiency.exchange
    update_s = UPDATE_PASSES * stored_elements * FLOAT32_BYTES / machine.memory_bytes_per_s
    return exchanged / rate, update_s


def _choose_rate(case: TrainingCase, machine: Rates, group_span: int) -> float:
    """Return the bandwidth of a group of adjacent ranks: within a node or over the network."""
    return machine.node_bytes_per_s if group_span <= machine.devices_per_node else machine.network_bytes_per_s


def _sequence_parts(case: TrainingCase) -> int:
    return case.layout.tensor_parallel if case.sequence_parallel else 1
