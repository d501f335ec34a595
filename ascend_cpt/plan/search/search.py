"""Searches for a model's fastest layouts that fit on a cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.plan.case import TrainingCase
from ascend_cpt.plan.estimate import Estimate, Limits, estimate, needed_bytes
from ascend_cpt.plan.machines import Machine
from ascend_cpt.plan.memory import estimate_stage_memory
from ascend_cpt.plan.search.candidates import count_useful_chunks, list_layouts, list_stage_parts, list_switches
from ascend_cpt.plan.search.stages import StageSolver
from ascend_cpt.plan.speed.throughput import combine_stages, estimate_stage

Accepts = Callable[[TrainingCase], bool]
Shape = tuple[ParallelLayout, int]
# Speeds that differ by less than this count as equal, so that the simplest switches are tried first.
MARGIN = 1e-6
# Share of the usable memory that is not worth twice as many chunks of the loss.
CHUNK_MARGIN = 0.01


def find_fastest(
    case: TrainingCase,
    machine: Machine,
    limits: Limits,
    *,
    world_size: int,
    max_layouts: int = 10,
    accepts: Accepts = lambda case: True,
) -> list[TrainingCase]:
    """Return the fastest case for each of the `max_layouts` fastest combinations of layout and rows, fastest first.

    Layouts are tried in the order of a bound: the speed with layers divided evenly and nothing recomputed. The search
    ends when no bound exceeds the speeds found, so pruning loses nothing.

    Args:
        case: Provides the model, sequence length and global batch. Its layout does not matter.
        machine: The machine.
        limits: A device's memory limits.
        world_size: Number of devices.
        max_layouts: Length of the result.
        accepts: Called with the best case of a layout; False drops it.
    """
    bounded = [
        (bound_speed(layout, machine, max(list_stage_parts(layout))), layout)
        for layout in list_layouts(case, world_size, machine.devices_per_node)
    ]
    found: list[tuple[float, TrainingCase]] = []
    for bound, layout in sorted(bounded, key=lambda pair: -pair[0]):
        if len(found) == max_layouts and bound <= found[-1][0]:
            break
        floor = found[-1][0] if len(found) == max_layouts else 0.0
        best = _solve_layout(layout, machine, limits, floor)
        if best is not None and accepts(best[1]):
            found = sorted([*found, best], key=lambda pair: -pair[0])[:max_layouts]
    return [best for _, best in found]


def bound_speed(case: TrainingCase, machine: Machine, more_parts: int = 1) -> float:
    """Return an upper bound on tokens per second for any division into stages: equal times, unlimited memory.

    Args:
        case: The case.
        machine: The machine.
        more_parts: How many times more parts the stages may have, which divides the bubble.
    """
    stages = [estimate_stage(case, stage, machine, machine.efficiency) for stage in range(case.num_stages)]
    time = combine_stages(case, stages, machine, machine.efficiency)
    slowest_s = max(stage.total_s for stage in stages)
    mean_s = sum(stage.total_s for stage in stages) / len(stages)
    # A step takes (micro batches - 1 / parts) × the slowest stage + every stage once / parts.
    gained_s = (case.num_micro_batches - 1 / case.interleave) * (slowest_s - mean_s)
    gained_s += (len(stages) - 1) * mean_s / case.interleave * (1 - 1 / more_parts)
    # Sharding the optimizer within a node saves at most the whole exchange over the network.
    return time.tokens / (time.step_s - gained_s - time.data_exchange_s)


def _solve_layout(
    layout: TrainingCase, machine: Machine, limits: Limits, floor: float
) -> tuple[float, TrainingCase] | None:
    """Return a layout's fastest case that exceeds `floor` tokens per second, with its speed."""
    best: tuple[float, TrainingCase] | None = None
    for case in list_switches(layout, machine.devices_per_node):
        floor = max(floor, best[0] * (1 + MARGIN) if best else 0.0)
        if bound_speed(case, machine) <= floor:
            continue
        solver = StageSolver(case=case, machine=machine, limits=limits)
        solved = solver.solve()
        if solved is not None and solved[1].tokens_per_s > floor:
            best = (solved[1].tokens_per_s, solved[0])
            floor = best[0] * (1 + MARGIN)
        chunks = count_useful_chunks(case)
        if chunks == 1 or bound_speed(dataclasses.replace(case, loss_chunks=chunks), machine) <= floor:
            continue
        solved = solver.split_loss(chunks).solve()
        if solved is not None and solved[1].tokens_per_s > floor:
            best = (solved[1].tokens_per_s, reduce_chunks(solved[0], limits))
    return best


def reduce_chunks(case: TrainingCase, limits: Limits) -> TrainingCase:
    """Return the case with the fewest chunks of the loss with which the last stage needs hardly more memory."""

    def count_needed(chunks: int) -> int:
        split = dataclasses.replace(case, loss_chunks=chunks)
        return needed_bytes(estimate_stage_memory(split, case.num_stages - 1))

    chunks = case.loss_chunks
    most_bytes = min(limits.usable_bytes, count_needed(chunks) + int(CHUNK_MARGIN * limits.usable_bytes))
    while chunks > 2 and count_needed(chunks // 2) <= most_bytes:
        chunks //= 2
    return dataclasses.replace(case, loss_chunks=chunks)


def estimate_as(plan: Estimate, case: TrainingCase) -> Estimate:
    """Return the plan for the same run with another case."""
    return estimate(case, plan.machine, plan.limits, total_tokens=plan.total_tokens, checkpoints=plan.checkpoints)


def find_safe(plan: Estimate, share: float = 0.92) -> Estimate | None:
    """Return the fastest plan on the same devices that uses at most `share` of the usable memory."""
    usable = int(plan.limits.usable_bytes * share)
    limits = dataclasses.replace(plan.limits, pool_bytes=usable)
    cases = find_fastest(plan.case, plan.machine, limits, world_size=plan.case.layout.world_size, max_layouts=1)
    return estimate_as(plan, cases[0]) if cases else None
