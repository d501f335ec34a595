"""Searches layouts of a model that fit on a cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.plan.case import TrainingCase, split_layers
from ascend_cpt.plan.estimate import Estimate, estimate
from ascend_cpt.plan.layout import cuts_nodes_unevenly

MAX_MICRO_BATCH = 8


def suggest(plan: Estimate, *, max_plans: int = 10) -> list[Estimate]:
    """Return up to `max_plans` plans of the same run on the same devices that fit, fastest first.

    The global batch is kept. Tensor parallel stays within a node. Layers that do not divide evenly go to the middle
    stages, which hold neither embedding nor output.
    """
    found = []
    for case in list_cases(plan.case, plan.machine.devices_per_node):
        candidate = estimate(
            case, plan.machine, plan.limits, total_tokens=plan.total_tokens, checkpoints=plan.checkpoints
        )
        if candidate.fits:
            found.append(candidate)
    return sorted(found, key=lambda candidate: -candidate.time.tokens_per_s)[:max_plans]


def list_cases(case: TrainingCase, devices_per_node: int) -> Iterator[TrainingCase]:
    """Yield every valid layout of the same model, sequence length and global batch."""
    model, world = case.model, case.layout.world_size
    global_rows = case.tokens_per_step // case.seq_length
    for tensor in _divisors(min(devices_per_node, world)):
        sizes = (model.num_heads, model.num_kv_heads, model.intermediate_size, model.vocab_size, case.seq_length)
        if world % tensor or any(size % tensor for size in sizes):
            continue
        for stages in _divisors(world // tensor):
            if stages > model.num_layers:
                continue
            data = world // tensor // stages
            if global_rows % data:
                continue
            layout = ParallelLayout(
                world_size=world, data_parallel=data, tensor_parallel=tensor, pipeline_parallel=stages
            )
            if cuts_nodes_unevenly(layout):
                continue
            yield from _list_batches(case, layout, global_rows // data)


def _list_batches(case: TrainingCase, layout: ParallelLayout, rows_per_rank: int) -> Iterator[TrainingCase]:
    layers = _spread_layers(case.model.num_layers, layout.pipeline_parallel)
    for micro in _divisors(rows_per_rank):
        num_micro = rows_per_rank // micro
        if micro > MAX_MICRO_BATCH or (layout.pipeline_parallel > 1 and num_micro < layout.pipeline_parallel):
            continue
        for recomputed in ((0,) * len(layers), layers):
            yield dataclasses.replace(
                case,
                layout=layout,
                layers_per_stage=layers,
                micro_batch_size=micro,
                num_micro_batches=num_micro,
                sequence_parallel=layout.tensor_parallel > 1,
                recomputed_layers=recomputed,
            )


def _spread_layers(num_layers: int, num_stages: int) -> tuple[int, ...]:
    return split_layers(num_layers, num_stages, make_offset(num_layers, num_stages))


def make_offset(num_layers: int, num_stages: int) -> list[int]:
    """Return the `offset` that assigns the remaining layers to the middle stages first, one each."""
    extra = num_layers % num_stages
    order = [*range(1, num_stages - 1), 0, num_stages - 1]
    chosen = order[:extra]
    return [int(stage in chosen) for stage in range(num_stages)]


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
