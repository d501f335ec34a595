"""Builds the inputs to the memory, time and disk estimates from a resolved run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.config.sections import find_section
from ascend_cpt.config.values import to_steps
from ascend_cpt.model.lora import LoraSettings, list_adapter_shapes
from ascend_cpt.model.parameters import count_parameters, list_mindformers_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.plan.case import DTYPE_BYTES, FLOAT32_BYTES, TrainingCase, split_layers
from ascend_cpt.plan.checkpoints import Checkpoints, plan_checkpoints
from ascend_cpt.plan.layout import count_stage_parts
from ascend_cpt.run.checks.loss_chunks import find_keys_without_chunks
from ascend_cpt.run.resolved_run import ResolvedRun


def count_checkpoints(run: ResolvedRun, total_steps: int | None) -> Checkpoints:
    """Return how many checkpoints a run writes in `total_steps` (None if the length is unknown)."""
    checkpoint, tokens_per_step = run.config.cpt.checkpoint, run.budget.tokens_per_step
    sizes, param_bytes = read_sizes(run.model), DTYPE_BYTES[str(run.model.get("params_dtype", "float32"))]
    shapes, frozen = list_mindformers_shapes(sizes), set(run.frozen)
    num_parameters = count_parameters(sizes)
    saved, trained = num_parameters, sum(math.prod(shapes[name]) for name in shapes if name not in frozen)
    if run.lora is not None:
        saved = trained = sum(math.prod(shape) for shape in list_adapter_shapes(sizes, run.lora).values())
    return plan_checkpoints(
        saved,
        FLOAT32_BYTES if run.lora else param_bytes,
        num_steps=total_steps,
        save_every_steps=to_steps(checkpoint.every, tokens_per_step),
        keep_last=checkpoint.keep_last,
        keep_every_steps=to_steps(checkpoint.keep_every, tokens_per_step),
        num_best=checkpoint.keep_best.n if checkpoint.keep_best else 0,
        num_trained=trained,
        export_bytes=num_parameters * param_bytes if run.config.cpt.export is not None else 0,
    )


# Dotted key → the values that a plan assumes, and why.
UNPLANNED: dict[str, tuple[tuple[Any, ...], str]] = {
    "swap_config.swap": ((None, False), "activations in the host's memory (use recomputation or optimizer.swap)"),
    "parallel.pipeline_config.pipeline_scheduler": ((None, "1f1b"), "pipeline schedules other than 1f1b"),
}


def find_unplanned(sections: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the dotted key and the problem of a setting that the plan does not model, or None."""
    for dotted, (assumed, what) in UNPLANNED.items():
        parent, _, key = dotted.rpartition(".")
        section = find_section(sections, parent)
        value = section.get(key) if isinstance(section, Mapping) else None
        if value not in assumed:
            return dotted, f"{dotted} {value}: plans do not cover {what}"
    return None


def build_case(run: ResolvedRun) -> TrainingCase:
    """Return the training case for a resolved run."""
    sections = {**run.config.mindformers, "model": {"model_config": run.model}}
    return build_case_of(
        sections,
        run.layout,
        seq_length=run.budget.seq_length,
        micro_batch_size=run.budget.micro_batch_size,
        num_micro_batches=run.budget.num_accumulation_steps,
        compresses_mask=bool(run.model.get("use_attn_mask_compression")) or run.row_format.boundaries == "ends",
        loss_chunks=run.config.cpt.loss_chunks,
        lora=run.lora,
        frozen=run.frozen,
    )


def build_case_of(
    sections: Mapping[str, Any],
    layout: ParallelLayout,
    *,
    seq_length: int,
    micro_batch_size: int,
    num_micro_batches: int,
    compresses_mask: bool,
    loss_chunks: int = 1,
    lora: LoraSettings | None = None,
    frozen: Iterable[str] = (),
) -> TrainingCase:
    """Return the training case for the MindFormers sections."""
    model = sections["model"]["model_config"]
    sizes = read_sizes(model)
    parallel = sections.get("parallel") or {}
    optimizer = parallel.get("parallel_optimizer_config") or {}
    shard_size = int(optimizer.get("optimizer_weight_shard_size") or -1)
    parts = count_stage_parts(model, layout)
    layers = split_layers(sizes.num_layers, layout.pipeline_parallel, model.get("offset"), parts)
    recompute = sections.get("recompute_config") or {}
    return TrainingCase(
        model=sizes,
        parameters={**list_mindformers_shapes(sizes), **(list_adapter_shapes(sizes, lora) if lora else {})},
        frozen=frozenset(frozen),
        layout=layout,
        layers_per_stage=layers,
        seq_length=seq_length,
        micro_batch_size=micro_batch_size,
        num_micro_batches=num_micro_batches,
        sequence_parallel=bool((sections.get("parallel_config") or {}).get("use_seq_parallel")),
        recomputed_layers=_read_recomputed_layers(recompute.get("recompute"), layers),
        recomputes_selected=bool(recompute.get("select_recompute")),
        shards_optimizer=bool(parallel.get("enable_parallel_optimizer", False)),
        # MindSpore ignores sizes of 1 and below.
        optimizer_shard_size=shard_size if shard_size > 1 else None,
        shards_gradients=bool(optimizer.get("gradient_accumulation_shard", False)),
        shard_threshold_bytes=int(optimizer.get("parallel_optimizer_threshold", 64)) * 1024,
        regathers_weights=bool(recompute.get("parallel_optimizer_comm_recompute", False)),
        swaps_optimizer=bool((sections.get("optimizer") or {}).get("swap", False)),
        compresses_mask=compresses_mask,
        interleave=parts,
        loss_chunks=loss_chunks,
        can_chunk_loss=not find_keys_without_chunks(sections),
        residuals_in_float32=bool(model.get("fp32_residual_connection")),
        param_bytes=DTYPE_BYTES[str(model.get("params_dtype", "float32"))],
        compute_bytes=DTYPE_BYTES[str(model.get("compute_dtype", "bfloat16"))],
    )


def _read_recomputed_layers(value: Any, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Return the number of recomputed layers by stage; `value` is `recompute_config.recompute`, a switch or a list."""
    counts = value if isinstance(value, list) else [bool(value)] * len(layers)
    return tuple(
        (most if count else 0) if isinstance(count, bool) else min(count, most)
        for count, most in zip(counts, layers, strict=True)
    )
