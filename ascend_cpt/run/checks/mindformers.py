"""Checks of MindFormers' sections: keys that this program sets, and values that MindFormers does not handle."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.parallel_layout import ParallelLayout, uses_cpu
from ascend_cpt.config.sections import find_section, load_key_table
from ascend_cpt.config.values import format_number
from ascend_cpt.errors import ConfigError
from ascend_cpt.model.families import ARCHITECTURES
from ascend_cpt.model.frozen import find_freeze_problem
from ascend_cpt.model.moe_settings import find_moe_problems
from ascend_cpt.model.rope import read_rope
from ascend_cpt.model.sizes import find_window_problem, read_sizes
from ascend_cpt.model.unsupported import find_difference
from ascend_cpt.plan.layout import find_layout_problems, find_switch_problems

# Dotted key → the values allowed if the key is present, and what to set instead.
OWNED_KEYS: dict[str, tuple[tuple[Any, ...], str]] = {
    "train_dataset": ((), "name the data in cpt.sources"),
    "train_dataset_task": ((), "name the data in cpt.sources"),
    "eval_dataset": ((), "name the data in cpt.validation.sets"),
    "eval_dataset_task": ((), "name the data in cpt.validation.sets"),
    "callbacks": ((), "set cpt.checkpoint, cpt.validation and cpt.monitor"),
    "checkpoint": ((), "set cpt.init_from and cpt.checkpoint"),
    "do_eval": ((False,), "set cpt.validation"),
    "data_skip_steps": ((0,), "a resumed run automatically skips the data that it has already trained on"),
    "ignore_data_skip": ((False,), "a resumed run continues with the next row"),
    "only_save_strategy": ((False,), "this program only trains"),
    "auto_trans_ckpt": ((False,), "checkpoints are resharded when they are loaded"),
    "calculate_per_token_loss": ((False,), "the loss is the mean over the tokens of a micro batch"),
    "micro_batch_interleave_num": ((1,), "MindFormers does not support it for these models"),
    "use_legacy": ((False,), "the models are mcore models"),
    "use_legacy_format": ((False,), "checkpoints are in the new format"),
    "load_ckpt_format": (("safetensors",), "checkpoints are safetensors"),
    "runner_config.stop_step": ((0,), "use --stop-at-step"),
    "runner_config.sink_size": ((1,), "callbacks must run after every step"),
    "model.model_config.seq_length": ((), "set cpt.seq_length"),
    "use_skip_data_by_global_norm": ((False,), "set cpt.guards.grad_norm_spike, which counts what it skips"),
    "model.model_config.position_embedding_type": (("rope",), "set rope_scaling as in the model's config.json"),
    "model.model_config.use_eod_reset": ((False,), "set cpt.document_attention: within"),
    "model.model_config.use_eod_attn_mask_compression": ((False,), "set cpt.document_attention: within"),
}
_FAMILY_KEY = "model.model_config.model_type"
SCHEDULER = "1f1b"  # the only pipeline schedule for which interleaved stages are planned
DEVICE_TARGETS = ("Ascend", "CPU")


def find_refusals(config: RunConfig, layout: ParallelLayout) -> list[str]:
    """Return a problem for every key that this program sets itself and every name that MindFormers does not know."""
    problems: list[str] = []
    sections = config.mindformers
    for dotted, (allowed, advice) in OWNED_KEYS.items():
        parent, _, key = dotted.rpartition(".")
        section = find_section(sections, parent)
        value = section.get(key) if isinstance(section, Mapping) else None
        if value is not None and not any(value == item and type(value) is type(item) for item in allowed):
            equal = dotted == "model.model_config.seq_length" and value == config.cpt.seq_length
            if not equal:
                problems.append(f"{config.locate(*dotted.split('.'))}: {dotted}: remove it; {advice}")
    known_names = {
        _FAMILY_KEY: sorted(ARCHITECTURES),
        "context.device_target": list(DEVICE_TARGETS),
        **load_key_table()["names"],
    }
    for dotted, names in known_names.items():
        problems += _find_unknown_name(config, dotted, names)
    given = (sections.get("parallel_config") or {}).get("data_parallel")
    if uses_cpu(config) and given is not None and given != layout.world_size:
        problems.append(
            f"{config.locate('parallel_config', 'data_parallel')}: parallel_config.data_parallel {given}: the launch "
            f"has {format_number(layout.world_size, 'worker')}; remove the key"
        )
    return problems


def _find_unknown_name(config: RunConfig, dotted: str, names: list[str]) -> list[str]:
    parent, _, key = dotted.rpartition(".")
    section = find_section(config.mindformers, parent)
    value = section.get(key) if isinstance(section, Mapping) else None
    if value is None or value in names:
        return []
    matches = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"did you mean {matches[0]!r}?" if matches else f"choose one of {', '.join(names)}"
    difference = find_difference(str(value)) if dotted == _FAMILY_KEY else None
    if difference is not None:
        reason, hint = f"is not supported ({difference})", f"choose one of {', '.join(names)}"
    else:
        reason = "is unknown"
    return [f"{config.locate(*dotted.split('.'))}: {dotted}: {value!r} {reason}; {hint}"]


DROPOUT = "with dropout a resumed run would differ and the validation loss would be wrong"


def find_model_problems(config: RunConfig, layout: ParallelLayout) -> list[str]:
    """Return a problem for everything that is missing from the model section or does not fit the layout."""
    problems: list[str] = []
    model = (config.mindformers.get("model") or {}).get("model_config")
    if not isinstance(model, dict):
        return [f"{config.path}: model.model_config is missing; give the model's sizes there"]
    where = config.locate("model", "model_config")
    for key in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        if model.get(key) is None:
            problems.append(f"{where}: model.model_config.{key} is missing; add it")
    for key in ("hidden_dropout", "attention_dropout"):
        if model.get(key):
            problems.append(
                f"{config.locate('model', 'model_config', key)}: model.model_config.{key} must be 0: {DROPOUT}"
            )
    if window_problem := find_window_problem(model, config.cpt.seq_length):
        where_window = config.locate("model", "model_config", "sliding_window")
        problems.append(f"{where_window}: model.model_config.{window_problem}")
    try:
        read_rope(model)
    except ConfigError as error:
        key = "rope_parameters" if model.get("rope_parameters") else "rope_scaling"
        problems.append(f"{config.locate('model', 'model_config', key)}: model.model_config.{error}")
    parallel = config.mindformers.get("parallel_config") or {}
    recompute = False if uses_cpu(config) else (config.mindformers.get("recompute_config") or {}).get("recompute")
    problems += _find_interleave_problems(config, model, layout)
    if problems:
        return problems
    found = find_layout_problems(model, layout, config.cpt.seq_length, recompute=recompute)
    if not found and not uses_cpu(config):
        found = find_switch_problems(
            model,
            layout,
            config.cpt.seq_length,
            sequence_parallel=bool(parallel.get("use_seq_parallel", False)),
        )
    problems += [f"{config.locate('parallel_config')}: {problem}" for problem in found]
    for key, problem in find_moe_problems(model):
        problems.append(f"{config.locate('model', 'model_config', key)}: model.model_config.{key}: {problem}")
    if not problems and model.get("pet_config") is not None:
        problem = find_freeze_problem(read_sizes(model), model["pet_config"])
        if problem:
            where = config.locate("model", "model_config", "pet_config")
            problems.append(f"{where}: model.model_config.pet_config: {problem}")
    return problems


def _find_interleave_problems(config: RunConfig, model: Mapping[str, Any], layout: ParallelLayout) -> list[str]:
    """Return a problem if the parts of the model on every stage are no number, or need settings that are missing."""
    parts = model.get("pp_interleave_num")
    if parts in (None, 1) and not isinstance(parts, bool):
        return []
    where = f"{config.locate('model', 'model_config', 'pp_interleave_num')}: model.model_config.pp_interleave_num"
    if not isinstance(parts, int) or isinstance(parts, bool) or parts < 1:
        return [f"{where}: {parts!r}; expected a number of parts on every pipeline stage, such as 2"]
    if layout.pipeline_parallel == 1:
        return [f"{where} {parts} needs pipeline_stage above 1; remove it"]
    pipeline = find_section(config.mindformers, "parallel.pipeline_config")
    scheduler = (pipeline if isinstance(pipeline, Mapping) else {}).get("pipeline_scheduler", SCHEDULER)
    if scheduler != SCHEDULER:
        return [f"{where} {parts} needs parallel.pipeline_config.pipeline_scheduler {SCHEDULER}, not {scheduler}"]
    return []
