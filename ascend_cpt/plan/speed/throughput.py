"""Estimates a training step's time, the parts of that time, and the throughput.

Device FLOPs are counted as in Narayanan et al. 2021 (arXiv:2104.04473, appendix), with half of the attention FLOPs
because of the causal mask. The model FLOPs utilization counts full attention as in PaLM (arXiv:2204.02311, appendix B),
like the figure that a run reports. The efficiencies are fitted to figures published by MindFormers, which
docs/planning.md lists with the errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ascend_cpt.model.flops import count_layer_matmul_parameters, count_training_flops_per_token
from ascend_cpt.model.lora import LORA_A, LORA_B
from ascend_cpt.plan.case import FLOAT32_BYTES, TrainingCase
from ascend_cpt.plan.slices import EMBEDDING, LAYER_PREFIX, OUTPUT, ParameterSlice, count_slices
from ascend_cpt.plan.speed.efficiency import Efficiency

BACKWARD_INPUT, BACKWARD_WEIGHT = 1.0, 1.0  # the latter only for trained weights
BACKWARD_ATTENTION = 2.5  # FlashAttention recomputes the scores
# Tensors as large as a micro batch's hidden states, exchanged per layer between tensor-parallel ranks.
FORWARD_EXCHANGES = 4
BACKWARD_EXCHANGES = 4
# Of these, with experts instead of an MLP, which compute the tokens where they are: those of the attention.
MOE_EXCHANGES = 2
# Float32 tensors as large as the logits, read or written by the loss and its gradient.
LOGITS_PASSES = 14
LOGITS_PASSES_AGAIN = 6  # to compute them, and the log-softmax, once more (`cpt.loss_chunks`)
# Tensors as large as the MLP's inner states, read or written to recompute SiLU (`select_recompute`).
SELECTED_PASSES = 2
# Float32 tensors as large as the parameters, read or written by the optimizer.
UPDATE_PASSES = 20
# Both moments, read from the host and written back (`optimizer.swap`).
SWAPPED_TENSORS = 4
SECONDS_PER_DAY = 86400


class Rates(Protocol):
    """A machine's peak rates; see `machines.Machine`."""

    @property
    def peak_flops(self) -> float: ...
    @property
    def memory_bytes_per_s(self) -> float: ...
    @property
    def node_bytes_per_s(self) -> float: ...
    @property
    def network_bytes_per_s(self) -> float: ...
    @property
    def host_bytes_per_s(self) -> float: ...
    @property
    def devices_per_node(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step on the slowest pipeline stage."""

    compute_s: float
    """Matrix products, attention, elementwise operators, recomputation."""
    fixed_s: float
    """Time that does not depend on the number of tokens: launching the kernels of every layer, and of the step."""
    tensor_exchange_s: float
    pipeline_bubble_s: float
    """Time in which the slowest stage waits for the others to fill and drain the pipeline."""
    pipeline_exchange_s: float
    data_exchange_s: float
    """The part that computation does not hide."""
    update_s: float
    """The optimizer, with the transfer of states swapped to the host."""
    tokens: int
    num_devices: int
    model_flops: float
    """FLOPs of the step on all devices, without recomputation."""
    peak_flops: float

    @property
    def step_s(self) -> float:
        return self.compute_s + self.fixed_s + self.pipeline_bubble_s + self.exchange_s + self.update_s

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
        """Model FLOPs utilization, 0 to 1, not counting recomputation."""
        return self.model_flops / (self.step_s * self.num_devices * self.peak_flops)

    def count_days(self, tokens: int) -> float:
        """Return how many days a run of `tokens` takes without interruptions."""
        return tokens / self.tokens_per_s / SECONDS_PER_DAY


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Seconds of one micro batch on a stage, forward and backward."""

    compute_s: float
    fixed_s: float
    exchange_s: float

    @property
    def total_s(self) -> float:
        return self.compute_s + self.fixed_s + self.exchange_s


def estimate_step(case: TrainingCase, machine: Rates, efficiency: Efficiency) -> StepTime:
    """Return the time of one optimizer step."""
    stages = [estimate_stage(case, stage, machine, efficiency) for stage in range(case.num_stages)]
    return combine_stages(case, stages, machine, efficiency)


def combine_stages(case: TrainingCase, stages: Sequence[StageTime], machine: Rates, efficiency: Efficiency) -> StepTime:
    """Return the time of one optimizer step, given each stage's time per micro batch."""
    slowest = max(stages, key=lambda stage: stage.total_s)
    # The first micro batch passes the other stages once. With interleaving, a stage waits for only one of its parts.
    bubble = (sum(stage.total_s for stage in stages) - slowest.total_s) / case.interleave
    sends = 2 * case.num_micro_batches * case.interleave if case.num_stages > 1 else 0
    boundary_bytes = case.tokens_per_rank // _sequence_parts(case) * case.model.hidden_size * case.compute_bytes
    pipeline_rate = _choose_rate(machine, case.layout.world_size) * efficiency.exchange
    data_s = _estimate_data_exchange(case, machine, efficiency)
    return StepTime(
        compute_s=case.num_micro_batches * slowest.compute_s,
        fixed_s=case.num_micro_batches * slowest.fixed_s + efficiency.step_s,
        tensor_exchange_s=case.num_micro_batches * slowest.exchange_s,
        pipeline_bubble_s=bubble,
        pipeline_exchange_s=sends * boundary_bytes / pipeline_rate,
        # Gradients are reduced during the last micro batch, and weights are gathered during the first one.
        data_exchange_s=data_s - min(efficiency.data_hidden * data_s, slowest.compute_s),
        update_s=_estimate_update(case, machine),
        tokens=case.tokens_per_step,
        num_devices=case.layout.world_size,
        model_flops=count_training_flops_per_token(case.model, case.seq_length, case.frozen) * case.tokens_per_step,
        peak_flops=machine.peak_flops,
    )


def _count_layer_attention(case: TrainingCase) -> float:
    """Return one token's forward FLOPs for scores and weighted values, over half the sequence on average.

    Context parallelism splits rows into consecutive parts, so the rank with the last part sees nearly the whole row.
    """
    parts = case.layout.context_parallel
    return 2.0 * case.seq_length * case.model.query_size * (2 - 1 / parts)


def estimate_stage(case: TrainingCase, stage: int, machine: Rates, efficiency: Efficiency) -> StageTime:
    """Return the times of one micro batch, forward and backward."""
    layers = case.layers_per_stage[stage]
    recomputed = min(case.recomputed_layers[stage], layers)
    tensor, tokens = case.layout.tensor_parallel, case.tokens_per_rank
    products = (1 + BACKWARD_INPUT + BACKWARD_WEIGHT * count_trained_share(case, stage)) * layers + recomputed
    matmul = 2.0 * count_layer_matmul_parameters(case.model) * products
    matmul += 2.0 * count_adapter_products(case) * ((1 + BACKWARD_INPUT + BACKWARD_WEIGHT) * layers + recomputed)
    attention = _count_layer_attention(case) * ((1 + BACKWARD_ATTENTION) * layers + recomputed)
    moved = efficiency.activation_passes * _count_elementwise_bytes(case) * (3 * layers + recomputed)
    if case.recomputes_selected:
        inner = tokens / tensor * _count_inner_size(case) * case.compute_bytes
        moved += SELECTED_PASSES * inner * (layers - recomputed)
    if stage == case.num_stages - 1:
        computed_again = int(case.loss_chunks > 1)  # the backward pass recomputes each part's logits
        output = OUTPUT if OUTPUT in case.parameters else EMBEDDING
        products = 1 + BACKWARD_INPUT + BACKWARD_WEIGHT * (output not in case.frozen) + computed_again
        matmul += products * 2 * case.model.hidden_size * case.model.vocab_size
        passes = LOGITS_PASSES + computed_again * LOGITS_PASSES_AGAIN
        moved += passes * tokens * case.model.vocab_size / tensor * FLOAT32_BYTES
    compute_s = (
        tokens / tensor * matmul / (machine.peak_flops * efficiency.matmul)
        + tokens / tensor * attention / (machine.peak_flops * efficiency.attention)
        + moved / machine.memory_bytes_per_s
    )
    # This also holds with `mp_comm_recompute: False`, which does not change the compiled graph.
    is_moe = case.model.experts is not None
    forward, backward = (MOE_EXCHANGES, MOE_EXCHANGES) if is_moe else (FORWARD_EXCHANGES, BACKWARD_EXCHANGES)
    exchanges = (forward + backward) * layers + (forward - 1) * recomputed
    exchange_bytes = tokens * case.model.hidden_size * case.compute_bytes * (tensor - 1) / tensor
    rate = _choose_rate(machine, tensor) * efficiency.exchange
    shown = 1 - efficiency.tensor_hidden if case.overlaps_exchange else 1.0
    context_rate = _choose_rate(machine, tensor * case.layout.context_parallel) * efficiency.exchange
    exchange_s = shown * exchanges * exchange_bytes / rate
    return StageTime(
        compute_s=compute_s,
        fixed_s=efficiency.layer_s * (3 * layers + recomputed),
        exchange_s=exchange_s
        + _estimate_context_exchange(case, layers, recomputed, context_rate)
        + _estimate_expert_exchange(case, layers, recomputed, machine, efficiency),
    )


def count_trained_share(case: TrainingCase, stage: int) -> float:
    """Return the share of the elements of a stage's layer matrices that are trained; adapters are not counted."""
    if not case.frozen:
        return 1.0
    matrices = [
        (part.num_tensor_elements * number, part.is_trained)
        for part, number in count_slices(case, stage)
        if part.name.startswith(LAYER_PREFIX) and len(part.shape) == 2 and not part.is_adapter
    ]
    return sum(elements for elements, is_trained in matrices if is_trained) / sum(elements for elements, _ in matrices)


def count_adapter_products(case: TrainingCase) -> int:
    """Return the multiplications of one token with the adapters of one layer.

    B is multiplied with the inner values of all modules of its layer.
    """
    first = f"{LAYER_PREFIX}0."
    shapes = {name: shape for name, shape in case.parameters.items() if name.startswith(first)}
    return sum(
        shapes[name][0] * (shapes[name][1] + shapes[name.removesuffix(LORA_A) + LORA_B][0])
        for name in shapes
        if name.endswith(LORA_A)
    )


def _count_inner_size(case: TrainingCase) -> int:
    """Return the width of the MLP, or of all experts of a token."""
    experts = case.model.experts
    return case.model.intermediate_size if experts is None else experts.num_per_token * experts.intermediate_size


def _estimate_expert_exchange(
    case: TrainingCase, layers: int, recomputed: int, machine: Rates, efficiency: Efficiency
) -> float:
    """Return seconds for sending tokens to the ranks of their experts and back, forward and backward.

    Expert loads are assumed to be equal. The time for sorting tokens by expert is not included.
    """
    experts, parts = case.model.experts, case.layout.expert_parallel
    if experts is None or parts == 1:
        return 0.0
    tokens = case.tokens_per_rank // _sequence_parts(case) * experts.num_per_token
    sent_bytes = tokens * case.model.hidden_size * case.compute_bytes * (parts - 1) / parts
    return (4 * layers + 2 * recomputed) * sent_bytes / (_choose_rate(machine, parts) * efficiency.exchange)


def _estimate_context_exchange(case: TrainingCase, layers: int, recomputed: int, rate: float) -> float:
    """Return seconds for gathering the keys and values of the sequence's other parts and reducing their gradients."""
    parts = case.layout.context_parallel
    kv_bytes = 2 * case.tokens_per_rank * case.model.kv_size / case.layout.tensor_parallel * case.compute_bytes
    return (2 * layers + recomputed) * kv_bytes * (parts - 1) / rate


def _count_elementwise_bytes(case: TrainingCase) -> float:
    model, tensor = case.model, case.layout.tensor_parallel
    hidden = case.tokens_per_rank / _sequence_parts(case) * model.hidden_size * FLOAT32_BYTES
    inner = case.tokens_per_rank / tensor * (model.query_size + model.kv_size + 2 * _count_inner_size(case))
    return hidden + inner * case.compute_bytes


def _estimate_data_exchange(case: TrainingCase, machine: Rates, efficiency: Efficiency) -> float:
    """Return the seconds of communication between data-parallel ranks on the largest stage."""
    tensor, expert = case.layout.tensor_parallel, case.layout.expert_parallel
    replicas = case.layout.data_parallel * case.layout.context_parallel

    def estimate(stage: int) -> float:
        slices = count_slices(case, stage)
        of_experts = [entry for entry in slices if entry[0].is_expert]
        others = [entry for entry in slices if not entry[0].is_expert]
        seconds = _estimate_replicas(case, others, replicas, tensor, machine, efficiency)
        return seconds + _estimate_replicas(case, of_experts, replicas * tensor // expert, expert, machine, efficiency)

    return max(map(estimate, range(case.num_stages)))


def _estimate_replicas(
    case: TrainingCase,
    slices: Sequence[tuple[ParameterSlice, int]],
    replicas: int,
    inner: int,
    machine: Rates,
    efficiency: Efficiency,
) -> float:
    """Return the seconds for reducing the gradients and gathering the weights of parameters.

    Args:
        case: The training case.
        slices: The parameters, and how many there are of each.
        replicas: Ranks that hold the same part.
        inner: Distance of these ranks: the ranks that hold different parts are adjacent.
        machine: Peak rates.
        efficiency: Efficiencies.
    """
    if replicas == 1 or not slices:
        return 0.0
    elements = sum(number * part.num_tensor_elements for part, number in slices)
    trained = sum(number * part.num_tensor_elements for part, number in slices if part.is_trained)
    shards = min(case.optimizer_shard_size or replicas, replicas) if case.shards_optimizer else 1
    # Accumulated gradients are reduced once per step, but sharded ones after every micro batch.
    reductions = case.num_micro_batches if case.shards_gradients else 1
    reduced_bytes = trained * FLOAT32_BYTES * (replicas - 1) / replicas * reductions
    if shards < replicas:
        # Shard gradients are then summed over the groups of ranks that hold the same shards.
        groups = replicas // shards
        reduced_bytes += trained / shards * FLOAT32_BYTES * (groups - 1) / groups
    gathers = 1 + case.regathers_weights * case.num_micro_batches
    gathered_bytes = elements * case.compute_bytes * (shards - 1) / shards * gathers
    reduce_rate = _choose_rate(machine, inner * replicas) * efficiency.exchange
    gather_rate = _choose_rate(machine, inner * shards) * efficiency.exchange
    return reduced_bytes / reduce_rate + gathered_bytes / gather_rate


def _estimate_update(case: TrainingCase, machine: Rates) -> float:
    """Return the seconds that the optimizer takes on the largest stage."""
    elements = max(count_slices(case, stage).trained_stored_elements for stage in range(case.num_stages))
    update_s = UPDATE_PASSES * elements * FLOAT32_BYTES / machine.memory_bytes_per_s
    if case.swaps_optimizer:
        update_s += SWAPPED_TENSORS * elements * FLOAT32_BYTES / machine.host_bytes_per_s
    return update_s


def _choose_rate(machine: Rates, group_span: int) -> float:
    """Return the bandwidth within a group of adjacent ranks, inside a node or over the network."""
    return machine.node_bytes_per_s if group_span <= machine.devices_per_node else machine.network_bytes_per_s


def _sequence_parts(case: TrainingCase) -> int:
    return case.layout.tensor_parallel if case.sequence_parallel else 1
