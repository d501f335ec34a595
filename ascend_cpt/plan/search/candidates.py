"""Lists a model's layouts on a cluster, without choosing layers or recomputation per stage.

The list excludes tensor parallelism without sequence parallelism, which is never better in the plan. It also excludes
a vocabulary not split by tensor parallelism (`vocab_emb_dp`), which the models do not support, and
`mp_comm_recompute`, which has no effect on these models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import product

from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.plan.activations import ADDED_GRADIENTS, LOGITS_COPIES_OF_PART
from ascend_cpt.plan.case import TrainingCase, split_layers
from ascend_cpt.plan.layout import NODE_DEVICES, cuts_nodes_unevenly

MAX_MICRO_BATCH = 8
MAX_CONTEXT = 8
# Parts of the model on every stage (`pp_interleave_num`).
STAGE_PARTS = (1, 2)
# Every part adds its own operators to the graph.
MAX_LOSS_CHUNKS = 32


def list_layouts(case: TrainingCase, world_size: int, devices_per_node: int) -> Iterator[TrainingCase]:
    """Yield every layout, with every number of rows, for the same model, sequence length and global batch.

    Layers are spread evenly, and nothing is recomputed.
    """
    model = case.model
    global_rows = case.tokens_per_step // case.seq_length
    sizes = (model.num_heads, model.num_kv_heads, model.intermediate_size, model.vocab_size)
    if world_size % NODE_DEVICES and NODE_DEVICES % world_size:
        return
    for tensor in divisors(min(devices_per_node, world_size)):
        if world_size % tensor or any(size % tensor for size in sizes):
            continue
        for context, stages in product(divisors(world_size // tensor), repeat=2):
            data = world_size // tensor // context // stages
            is_whole = data * tensor * context * stages == world_size
            if not is_whole or context > MAX_CONTEXT or stages > model.num_layers or global_rows % data:
                continue
            if case.seq_length % (tensor * context):
                continue
            layout = ParallelLayout(
                world_size=world_size,
                data_parallel=data,
                tensor_parallel=tensor,
                pipeline_parallel=stages,
                context_parallel=context,
            )
            if not cuts_nodes_unevenly(layout):
                for expert in _list_expert_sizes(case, data * tensor):
                    yield from _list_rows(
                        case, dataclasses.replace(layout, expert_parallel=expert), global_rows // data
                    )


def _list_expert_sizes(case: TrainingCase, num_ranks: int) -> list[int]:
    """Return the sizes of expert parallelism for ranks that share a stage's experts."""
    if case.model.experts is None:
        return [1]
    return [size for size in divisors(num_ranks) if case.model.experts.num_experts % size == 0]


def _list_rows(case: TrainingCase, layout: ParallelLayout, rows_per_rank: int) -> Iterator[TrainingCase]:
    stages = layout.pipeline_parallel
    layers = spread_layers(case.model.num_layers, stages)
    for micro in divisors(rows_per_rank):
        num_micro = rows_per_rank // micro
        if micro > MAX_MICRO_BATCH or (stages > 1 and num_micro < stages):
            continue
        yield dataclasses.replace(
            case,
            layout=layout,
            layers_per_stage=layers,
            micro_batch_size=micro,
            num_micro_batches=num_micro,
            sequence_parallel=layout.tensor_parallel > 1,
            recomputed_layers=(0,) * stages,
            recomputes_selected=False,
            regathers_weights=False,
            shards_optimizer=True,
            optimizer_shard_size=None,
            shards_gradients=False,
            interleave=1,
            loss_chunks=1,
        )


def list_switches(case: TrainingCase, devices_per_node: int) -> Iterator[TrainingCase]:
    """Yield the layout with every combination of switches that trade memory for time."""
    replicas = case.layout.data_parallel * case.layout.context_parallel
    in_node = devices_per_node // case.layout.tensor_parallel
    # Weights that are sharded within a node are gathered over its fast links.
    sizes = [None, in_node] if 1 < in_node < replicas and replicas % in_node == 0 else [None]
    # Without stages, MindSpore 2.9 did not finish compiling sharded gradients (docs/planning.md).
    gradients = (False, True) if replicas > 1 and case.accumulates and case.num_stages > 1 else (False,)
    for number, selected, size, sharded in product(list_stage_parts(case), (False, True), sizes, gradients):
        yield dataclasses.replace(
            case,
            interleave=number,
            recomputes_selected=selected,
            optimizer_shard_size=size,
            shards_gradients=sharded,
        )


def list_stage_parts(case: TrainingCase) -> list[int]:
    """Return the numbers of parts of the model that the stages of a layout can have."""
    if not case.can_interleave or case.num_stages == 1 or case.num_micro_batches % case.num_stages:
        return [1]
    return [number for number in STAGE_PARTS if number <= min(case.layers_per_stage)]


def count_useful_chunks(case: TrainingCase) -> int:
    """Return the number of chunks of the loss, a power of 2, beyond which its peak hardly falls.

    The peak is then in the sum of the output weight's gradients, not in the logits of a part.
    """
    if not case.can_chunk_loss:
        return 1
    row_part = case.seq_length // case.layout.context_parallel
    chunks = 1
    while (
        chunks < MAX_LOSS_CHUNKS
        and row_part % (2 * chunks) == 0
        and LOGITS_COPIES_OF_PART * case.tokens_per_rank > ADDED_GRADIENTS * case.model.hidden_size * chunks
    ):
        chunks *= 2
    return chunks


def spread_layers(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Return the layers per stage: an even share, with the remainder on the middle stages."""
    return split_layers(num_layers, num_stages, make_offset(num_layers, num_stages))


def make_offset(num_layers: int, num_stages: int) -> list[int]:
    """Return the `offset` that assigns the remaining layers to the middle stages first, one each."""
    extra = num_layers % num_stages
    order = [*range(1, num_stages - 1), 0, num_stages - 1]
    chosen = order[:extra]
    return [int(stage in chosen) for stage in range(num_stages)]


def divisors(number: int) -> list[int]:
    """Return a number's divisors in ascending order."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
