"""Does a parallel layout fit a model? Checked before anything is launched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_cpt.config.layout import Layout


def find_layout_problems(model: Mapping[str, Any], layout: Layout, seq_length: int) -> list[str]:
    """Return one line for each way in which `layout` does not divide the model.

    Args:
        model: The `model.model_config` section with Hugging Face names.
        layout: The parallel layout.
        seq_length: Tokens in a row.
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
        problems.extend(_find_pipeline_problems(layers, layout.pipeline_parallel, model.get("offset")))
    if seq_length % layout.context_parallel:
        problems.append(f"context_parallel {layout.context_parallel} does not divide seq_length {seq_length}")
    if heads and kv_heads and heads % kv_heads:
        problems.append(f"num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    return problems


def _find_pipeline_problems(layers: int, stages: int, offset: Any) -> list[str]:
    if stages == 1:
        return []
    if not isinstance(offset, list):
        # Without an offset MindFormers gives every stage the same number of layers.
        return [f"pipeline_stage {stages} does not divide num_hidden_layers {layers}"] if layers % stages else []
    if len(offset) != stages:
        return [f"offset has {len(offset)} entries, but pipeline_stage is {stages}"]
    per_stage = [layers // stages + extra for extra in offset]
    if sum(per_stage) != layers or min(per_stage) < 1:
        return [f"offset {offset} gives {per_stage} layers per stage, which is not num_hidden_layers {layers}"]
    return []
