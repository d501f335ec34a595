"""Renders a plan as text and as JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ascend_cpt.config.values import format_count, format_number, format_rows
from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.plan.estimate import Estimate, needed_bytes, reserve_bytes
from ascend_cpt.plan.memory import Moment, StageMemory
from ascend_cpt.plan.speed.compile_time import CompileTime

MEMORY_PARTS = ("weights", "optimizer", "gradients", "activations", "communication", "constants")


def render(plan: Estimate, compile_time: CompileTime | None = None) -> str:
    """Return the plan as text, with the time to compile if it is given."""
    case, time, layout = plan.case, plan.time, plan.case.layout
    recompute = _describe_recompute(plan)
    sizes = f"{layout.data_parallel} × tensor {layout.tensor_parallel} × pipeline {layout.pipeline_parallel}"
    lines = [
        f"model     {format_count(case.num_parameters)} parameters{_describe_trained(plan)}, {case.model.num_layers} "
        f"layers; rows of {case.seq_length} tokens",
        f"cluster   {format_number(layout.world_size, 'device')}, {plan.machine.name} "
        f"({plan.machine.chip}): data {sizes} × context {layout.context_parallel}"
        + (f", experts over {layout.expert_parallel}" if layout.expert_parallel > 1 else ""),
        f"step      {format_count(case.tokens_per_step)} tokens: {format_rows(case.micro_batch_size)} × "
        f"{case.num_micro_batches} micro batches × data {layout.data_parallel}; {recompute}",
        "",
        *_render_memory(plan),
        "",
        f"time      {time.step_s:.2f} s per step: computing {_share(time.compute_s, plan)}, fixed time of "
        f"layers and step {_share(time.fixed_s, plan)}, tensor parallel "
        f"{_share(time.tensor_exchange_s, plan)}, data parallel {_share(time.data_exchange_s, plan)}, pipeline "
        f"{_share(time.pipeline_exchange_s, plan)}, bubble {_share(time.pipeline_bubble_s, plan)}, optimizer "
        f"{_share(time.update_s, plan)}",
        f"speed     {time.tokens_per_s:,.0f} tokens/s, {time.tokens_per_device_s:,.0f} per device, MFU "
        f"{time.model_flops_utilization:.0%} of {plan.machine.peak_flops / 1e12:.0f} TFLOPS",
        f"error     {plan.machine.band.describe()}",
        _render_budget(plan),
        f"disk      {format_gigabytes(plan.checkpoints.num_bytes)} per checkpoint, at most "
        f"{plan.checkpoints.num_held} on disk at once: {format_gigabytes(plan.checkpoints.disk_bytes)}",
        *([] if compile_time is None else [f"compile   {compile_time.describe()}"]),
        _render_verdict(plan),
    ]
    return "\n".join(lines)


def to_record(plan: Estimate) -> dict[str, Any]:
    """Return the plan as JSON values, in bytes, seconds and tokens."""
    time = plan.time
    return {
        "fits": plan.fits,
        "parameters": plan.case.num_parameters,
        "layout": dataclasses.asdict(plan.case.layout),
        "layers_per_stage": list(plan.case.layers_per_stage),
        "recomputed_layers": list(plan.case.recomputed_layers),
        "micro_batch_size": plan.case.micro_batch_size,
        "num_micro_batches": plan.case.num_micro_batches,
        "machine": plan.machine.name,
        "error": dataclasses.asdict(plan.machine.band),
        "usable_bytes": plan.limits.usable_bytes,
        "stages": [
            {
                **dataclasses.asdict(stage),
                "peak": stage.peak.name,
                "peak_bytes": stage.peak_bytes,
                "reserve_bytes": reserve_bytes(stage),
            }
            for stage in plan.stages
        ],
        "time": {
            **dataclasses.asdict(time),
            "step_s": time.step_s,
            "fixed_share": time.fixed_s / time.step_s,
            "tokens_per_s": time.tokens_per_s,
            "tokens_per_device_s": time.tokens_per_device_s,
            "model_flops_utilization": time.model_flops_utilization,
        },
        "total_tokens": plan.total_tokens,
        "days": plan.days,
        "checkpoint_bytes": plan.checkpoints.num_bytes,
        "disk_bytes": plan.checkpoints.disk_bytes,
    }


def format_gigabytes(num_bytes: float) -> str:
    """Format bytes in units of 2^30."""
    return f"{num_bytes / GIGABYTE:,.1f} GB"


def _render_memory(plan: Estimate) -> list[str]:
    limit_bytes = plan.limits.usable_bytes
    heading = ["GB per rank", "layers", "moment", *MEMORY_PARTS, "reserve", "sum", f"of {limit_bytes / GIGABYTE:.0f}"]
    rows = [heading]
    for stage in plan.stages:
        for moment in (stage.training, stage.updating):
            parts = split_memory(stage, moment)
            total = sum(parts.values()) + reserve_bytes(stage)
            used = f"{total / limit_bytes:.0%}"
            rows.append(
                [
                    f"stage {stage.stage}",
                    str(stage.num_layers),
                    moment.name,
                    *(f"{parts[name] / GIGABYTE:.1f}" for name in MEMORY_PARTS),
                    f"{reserve_bytes(stage) / GIGABYTE:.1f}",
                    f"{total / GIGABYTE:.1f}",
                    used if total <= limit_bytes else f"{used} (too large)",
                ]
            )
    return align(rows)


def split_memory(stage: StageMemory, moment: Moment) -> dict[str, int]:
    """Return the bytes of each of `MEMORY_PARTS` on a rank at one moment."""
    return {
        "weights": stage.weights_bytes,
        "optimizer": stage.optimizer_bytes,
        "gradients": stage.accumulated_bytes + moment.gradients_bytes,
        "activations": moment.activations_bytes,
        "communication": moment.communication_bytes,
        "constants": stage.constants_bytes,
    }


def _render_budget(plan: Estimate) -> str:
    if plan.total_tokens is None or plan.days is None:
        return "budget    unknown without the datasets; set cpt.train_tokens, e.g. --set cpt.train_tokens=10B"
    return f"budget    {format_count(plan.total_tokens)} tokens in {plan.days:.1f} days"


def _render_verdict(plan: Estimate) -> str:
    if plan.fits:
        return "fits      yes"
    worst = max(plan.stages, key=needed_bytes)
    return (
        f"fits      NO: stage {worst.stage} needs {format_gigabytes(needed_bytes(worst))}, but only "
        f"{format_gigabytes(plan.limits.usable_bytes)} are usable; peak in `{worst.peak.name}`; list layouts that fit "
        "with --suggest"
    )


def _describe_trained(plan: Estimate) -> str:
    return f", {format_count(plan.case.num_trained)} of them trained" if plan.case.frozen else ""


def _describe_recompute(plan: Estimate) -> str:
    case = plan.case
    if not any(case.recomputed_layers):
        return "some operators recomputed" if case.recomputes_selected else "nothing recomputed"
    if case.recomputed_layers == case.layers_per_stage:
        return "all layers recomputed"
    return f"layers recomputed by stage: {list(case.recomputed_layers)}"


def _share(seconds: float, plan: Estimate) -> str:
    return f"{seconds / plan.time.step_s:.0%}"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's rows with right-aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
