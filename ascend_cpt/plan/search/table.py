"""Renders the layouts that a search found as a table. Row 0 is the given configuration."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ascend_cpt.plan.case import GIGABYTE, TrainingCase
from ascend_cpt.plan.estimate import Estimate, needed_bytes
from ascend_cpt.plan.report import align

HEADING = ["", "devices", "data", "tensor", "pipeline", "context", "rows", "micro batches", "layers", "recomputed",
           "switches", "GB", "tokens/s", "gain", "MFU", "days", "device hours"]  # fmt: skip


def render_table(given: Estimate | None, plans: Sequence[Estimate], *, by_cost: bool = False) -> str:
    """Return the table.

    Args:
        given: The plan for the configuration, or None if its layout is impossible on these devices.
        plans: The plans that were found, best first.
        by_cost: Whether the gain is measured in device hours per token instead of tokens per second.
    """
    rows = [HEADING]
    if given is not None:
        rows.append(_make_row("0 given", given, "" if given.fits else "does not fit"))
    for number, plan in enumerate(plans, start=1):
        rows.append(_make_row(str(number), plan, describe_gain(given, plan, by_cost=by_cost)))
    return "\n".join(align(rows))


def compute_gain(given: Estimate | None, plan: Estimate, *, by_cost: bool) -> float | None:
    """Return the relative gain over the given configuration, or None if that does not fit or does not exist."""
    if given is None or not given.fits:
        return None
    if by_cost:
        return plan.time.tokens_per_device_s / given.time.tokens_per_device_s - 1
    return plan.time.tokens_per_s / given.time.tokens_per_s - 1


def describe_gain(given: Estimate | None, plan: Estimate, *, by_cost: bool) -> str:
    """Return the gain as text."""
    gain = compute_gain(given, plan, by_cost=by_cost)
    return "" if gain is None else f"{gain:+.0%}"


def count_device_hours(plan: Estimate) -> float | None:
    """Return the run's device hours, or None if its length is unknown."""
    return None if plan.days is None else plan.days * 24 * plan.case.layout.world_size


def _make_row(name: str, plan: Estimate, gain: str) -> list[str]:
    layout, case = plan.case.layout, plan.case
    hours = count_device_hours(plan)
    return [
        name,
        str(layout.world_size),
        str(layout.data_parallel),
        str(layout.tensor_parallel),
        str(layout.pipeline_parallel),
        str(layout.context_parallel),
        str(case.micro_batch_size),
        str(case.num_micro_batches),
        describe_by_stage(case.layers_per_stage),
        "all" if case.recomputed_layers == case.layers_per_stage else describe_by_stage(case.recomputed_layers),
        describe_switches(case) or "-",
        f"{max(map(needed_bytes, plan.stages)) / GIGABYTE:.1f}",
        f"{plan.time.tokens_per_s:,.0f}",
        gain,
        f"{plan.time.model_flops_utilization:.0%}",
        "?" if plan.days is None else f"{plan.days:.1f}",
        "?" if hours is None else f"{hours:,.0f}",
    ]


def describe_by_stage(numbers: Sequence[int]) -> str:
    """Return per-stage numbers, with repetitions as `4×20`."""
    runs = [(value, len(list(group))) for value, group in groupby(numbers)]
    return ",".join(str(value) if length == 1 else f"{length}×{value}" for value, length in runs)


def describe_switches(case: TrainingCase) -> str:
    """Return a case's switches that trade memory for time, with their key names."""
    switches = {
        f"expert_parallel {case.layout.expert_parallel}": case.layout.expert_parallel > 1,
        f"interleave {case.interleave}": case.interleave > 1,
        "select_recompute": case.recomputes_selected,
        "gradient_accumulation_shard": case.shards_gradients,
        f"shard size {case.optimizer_shard_size}": case.optimizer_shard_size is not None,
        f"loss_chunks {case.loss_chunks}": case.loss_chunks > 1,
        "optimizer not sharded": not case.shards_optimizer,
        "optimizer.swap": case.swaps_optimizer,
    }
    return ", ".join(name for name, is_on in switches.items() if is_on)
