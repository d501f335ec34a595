"""Checks whether a parallel layout fits a model, before anything is launched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.config.values import format_number
from ascend_cpt.model.sizes import MOE_FAMILIES
from ascend_cpt.plan.case import split_parts

MIN_COMPRESSED_SEQ_LENGTH = 2048
NODE_DEVICES = 8  # hard-coded in MindSpore and MindFormers


def find_layout_problems(
    model: Mapping[str, Any], layout: ParallelLayout, seq_length: int, *, recompute: Any = False
) -> list[str]:
    """Return a problem for each model size that `layout` does not divide and each per-stage list that does not fit.

    Args:
        model: The `model.model_config` section, with Hugging Face names.
        layout: The parallel layout.
        seq_length: Tokens in a row.
        recompute: `recompute_config.recompute`, a switch or a per-stage list.
    """
    problems: list[str] = []
    tensor = layout.tensor_parallel
    heads = model.get("num_attention_heads")
    kv_heads = model.get("num_key_value_heads") or heads
    for name, value in (
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv_heads),
        ("intermediate_size", model.get("intermediate_size")),
        ("vocab_size", model.get("vocab_size")),
    ):
        if value is not None and value % tensor:
            problems.append(f"model_parallel {tensor} does not divide {name} {value}")
    layers = model.get("num_hidden_layers")
    if layers is not None:
        parts = count_stage_parts(model, layout)
        problems.extend(find_stage_problems(layers, layout.pipeline_parallel, model.get("offset"), recompute, parts))
    problems.extend(_find_expert_problems(model, layout))
    if seq_length % layout.context_parallel:
        problems.append(f"context_parallel {layout.context_parallel} does not divide seq_length {seq_length}")
    hidden_size = model.get("hidden_size")
    if heads and hidden_size and hidden_size % heads:
        # MindFormers requires this even if head_dim is given.
        problems.append(f"num_attention_heads {heads} does not divide hidden_size {hidden_size}")
    if heads and kv_heads and heads % kv_heads:
        problems.append(f"num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    return problems


def _find_expert_problems(model: Mapping[str, Any], layout: ParallelLayout) -> list[str]:
    """Return a problem if the experts cannot be divided among the ranks that share them."""
    expert, ranks = layout.expert_parallel, layout.data_parallel * layout.tensor_parallel
    if expert == 1:
        return []
    if model.get("model_type") not in MOE_FAMILIES:
        return [f"expert_parallel {expert}: the model has no experts; set it to 1"]
    problems = []
    if (model.get("num_experts") or 0) % expert:
        problems.append(f"expert_parallel {expert} does not divide num_experts {model.get('num_experts')}")
    if ranks % expert:
        problems.append(f"expert_parallel {expert} does not divide data_parallel × model_parallel {ranks}")
    return problems


def find_switch_problems(
    model: Mapping[str, Any],
    layout: ParallelLayout,
    seq_length: int,
    *,
    sequence_parallel: bool,
) -> list[str]:
    """Return a problem for each switch that MindFormers rejects with this layout.

    Args:
        model: The `model.model_config` section.
        layout: The parallel layout.
        seq_length: Tokens in a row.
        sequence_parallel: `parallel_config.use_seq_parallel`.
    """
    problems: list[str] = []
    if sequence_parallel and layout.tensor_parallel == 1:
        problems.append("use_seq_parallel needs model_parallel above 1; set it to False")
    if not sequence_parallel and layout.tensor_parallel > 1 and model.get("model_type") in MOE_FAMILIES:
        problems.append("a mixture of experts with model_parallel above 1 needs use_seq_parallel; set it to True")
    parts = layout.context_parallel * (layout.tensor_parallel if sequence_parallel else 1)
    if seq_length % parts:
        problems.append(
            f"use_seq_parallel splits rows into {parts} parts (model_parallel × context_parallel), which do not "
            f"divide seq_length {seq_length}"
        )
    if layout.world_size % NODE_DEVICES and NODE_DEVICES % layout.world_size:
        problems.append(
            f"MindSpore runs on whole nodes of {NODE_DEVICES} devices, or within one node on a number of devices that "
            f"divides {NODE_DEVICES}, not on {layout.world_size} devices"
        )
    elif _cuts_tensor_groups(layout):
        problems.append(
            f"model_parallel {layout.tensor_parallel} × context_parallel {layout.context_parallel} does not divide a "
            f"node's {NODE_DEVICES} devices and is not a multiple of them: MindSpore does not create groups of "
            "devices at different positions within their nodes; change one of them"
        )
    elif _cuts_stages(layout):
        problems.append(
            f"a pipeline stage has {layout.world_size // layout.pipeline_parallel} devices, neither a multiple nor a "
            f"divisor of a node's {NODE_DEVICES}: MindSpore does not create groups of devices at different "
            "positions within their nodes; change pipeline_stage or the number of nodes"
        )
    if layout.context_parallel > 1 and model.get("use_flash_attention") is False:
        problems.append(
            f"context_parallel {layout.context_parallel} needs flash attention; set "
            "model.model_config.use_flash_attention to True"
        )
    if model.get("use_attn_mask_compression") and seq_length < MIN_COMPRESSED_SEQ_LENGTH:
        problems.append(
            f"model_config.use_attn_mask_compression needs rows of at least {MIN_COMPRESSED_SEQ_LENGTH} tokens, "
            f"but cpt.seq_length is {seq_length}; set use_attn_mask_compression to False"
        )
    return problems


def cuts_nodes_unevenly(layout: ParallelLayout) -> bool:
    """Return whether a group's positions would differ between nodes, which MindSpore does not support."""
    return _cuts_tensor_groups(layout) or _cuts_stages(layout)


def _cuts_tensor_groups(layout: ParallelLayout) -> bool:
    return any(_is_uneven(layout, layout.tensor_parallel * context) for context in (1, layout.context_parallel))


def _cuts_stages(layout: ParallelLayout) -> bool:
    return _is_uneven(layout, layout.world_size // layout.pipeline_parallel)


def _is_uneven(layout: ParallelLayout, size: int) -> bool:
    """Return whether groups of `size` adjacent ranks neither fill whole nodes nor divide a node evenly."""
    return layout.world_size > NODE_DEVICES and bool(size % NODE_DEVICES) and bool(NODE_DEVICES % size)


def count_stage_parts(model: Mapping[str, Any], layout: ParallelLayout) -> int:
    """Return the number of parts of the model on every stage (`pp_interleave_num`), 1 without stages."""
    return int(model.get("pp_interleave_num") or 1) if layout.pipeline_parallel > 1 else 1


def _find_part_problems(layers: int, stages: int, offset: Any, recompute: Any, parts: int) -> list[str]:
    """Return any problems with interleaved stages, each with several parts of the model."""
    if layers < stages * parts:
        return [
            f"pipeline_stage {stages} × model.model_config.pp_interleave_num {parts} is more than num_hidden_layers "
            f"{layers}"
        ]
    if isinstance(recompute, list) and len(recompute) != stages:
        return [
            f"pipeline_stage is {stages}, but recompute_config.recompute has {format_number(len(recompute), 'value')}; "
            "give one value per stage, also with pp_interleave_num, or set recompute to True"
        ]
    share, rest = divmod(layers, stages * parts)
    if not isinstance(offset, list):
        given: list[list[int]] = [[0] * stages] * parts
    elif len(offset) == parts and all(isinstance(part, list) and len(part) == stages for part in offset):
        given = offset
    else:
        return [
            f"pp_interleave_num is {parts}: model.model_config.offset needs {parts} lists of {stages} values, with the "
            f"sum {rest}" + ("" if rest else ", or 0")
        ]
    per_part = [[share + extra for extra in part] for part in given]
    per_stage = [sum(stage) for stage in zip(*per_part, strict=True)]
    if sum(per_stage) != layers or min(map(min, per_part)) < 1:
        return [
            f"pp_interleave_num {parts}: the parts of the stages have {per_part} layers, but num_hidden_layers is "
            f"{layers}; every part needs a layer, and the sum of model.model_config.offset must be {rest}"
        ]
    if per_part != split_parts(per_stage, parts):
        return [
            f"pp_interleave_num {parts}: model.model_config.offset {offset} divides a stage's layers unevenly; use "
            f"{[[number - share for number in part] for part in split_parts(per_stage, parts)]}"
        ]
    return []


def find_stage_problems(layers: int, stages: int, offset: Any, recompute: Any, parts: int = 1) -> list[str]:
    """Return any problems with the division of `layers` into `stages` and with the per-stage lists."""
    if parts > 1:
        return _find_part_problems(layers, stages, offset, recompute, parts)
    share, rest = divmod(layers, stages)
    lists = {"model.model_config.offset": offset, "recompute_config.recompute": recompute}
    wrong = [name for name, value in lists.items() if isinstance(value, list) and len(value) != stages]
    if wrong:
        found = " and ".join(f"{name} has {format_number(len(lists[name]), 'value')}" for name in wrong)
        # Without an offset, MindFormers gives every stage the same number of layers.
        simple = {"model.model_config.offset": "" if rest else "offset to 0"}
        advice = " and ".join(filter(None, (simple.get(name, "recompute to True") for name in wrong)))
        total = f" (the sum of offset is {rest})" if "model.model_config.offset" in wrong else ""
        return [
            f"pipeline_stage is {stages}, but {found}; give one value per stage{total}"
            + (f", or set {advice}" if advice else "")
        ]
    if not isinstance(offset, list):
        if not rest:
            return []
        return [
            f"pipeline_stage {stages} does not divide num_hidden_layers {layers}; change it, or give "
            f"model.model_config.offset one value per stage, with the sum {rest}"
        ]
    per_stage = [share + extra for extra in offset]
    if sum(per_stage) == layers and min(per_stage) >= 1:
        return []
    return [
        f"model.model_config.offset {offset} gives {per_stage} layers per stage, but num_hidden_layers is {layers}; "
        f"every stage needs one, and the sum of offset is {rest}"
    ]
