"""Renders the configuration keys of a case as overrides and as a YAML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.sections import find_section
from ascend_cpt.errors import ConfigError
from ascend_cpt.files import write_whole
from ascend_cpt.plan.case import TrainingCase, split_parts

OPTIMIZER = "parallel.parallel_optimizer_config"
MISSING = object()


def list_changes(case: TrainingCase, config: RunConfig) -> dict[str, Any]:
    """Return the dotted keys and values that turn the run of `config` into `case`, without unchanged keys."""
    layout = case.layout
    wanted: dict[str, Any] = {
        "parallel_config.data_parallel": layout.data_parallel,
        "parallel_config.model_parallel": layout.tensor_parallel,
        "parallel_config.pipeline_stage": layout.pipeline_parallel,
        "parallel_config.context_parallel": layout.context_parallel,
        "parallel_config.expert_parallel": layout.expert_parallel,
        "parallel_config.use_seq_parallel": case.sequence_parallel,
        "runner_config.batch_size": case.micro_batch_size,
        "recompute_config.recompute": _write_recompute(case),
        "recompute_config.select_recompute": case.recomputes_selected,
        "recompute_config.parallel_optimizer_comm_recompute": case.regathers_weights,
        "parallel.enable_parallel_optimizer": case.shards_optimizer,
        f"{OPTIMIZER}.gradient_accumulation_shard": case.shards_gradients,
        f"{OPTIMIZER}.optimizer_weight_shard_size": case.optimizer_shard_size or -1,
        "model.model_config.offset": _write_offset(case),
        "model.model_config.pp_interleave_num": case.interleave,
        "cpt.loss_chunks": case.loss_chunks,
    }
    # Values that MindFormers or this program assumes if a key is missing.
    assumed = {
        "parallel_config.context_parallel": 1,
        "parallel_config.expert_parallel": 1,
        "parallel_config.use_seq_parallel": False,
        "recompute_config.select_recompute": False,
        "recompute_config.parallel_optimizer_comm_recompute": False,
        f"{OPTIMIZER}.gradient_accumulation_shard": False,
        f"{OPTIMIZER}.optimizer_weight_shard_size": -1,
        "model.model_config.offset": 0,
        "model.model_config.pp_interleave_num": 1,
    }
    given = {"cpt.loss_chunks": config.cpt.loss_chunks}
    for key in ("parallel_config.micro_batch_num", "runner_config.gradient_accumulation_steps"):
        if _read(config, key, None) is not None:
            wanted[key] = case.num_micro_batches
    given |= {key: _read(config, key, assumed.get(key)) for key in wanted if key not in given}
    return {key: value for key, value in wanted.items() if not _is_same(given[key], value)}


def _is_same(given: Any, value: Any) -> bool:
    return type(given) is type(value) and bool(given == value)


def _read(config: RunConfig, dotted: str, default: Any) -> Any:
    parent, _, key = dotted.rpartition(".")
    section = find_section(config.mindformers, parent)
    value = section.get(key) if isinstance(section, Mapping) else None
    return default if value is None else value


def _write_recompute(case: TrainingCase) -> bool | list[int]:
    if not any(case.recomputed_layers):
        return False
    if case.recomputed_layers == case.layers_per_stage:
        return True
    return list(case.recomputed_layers)


def _write_offset(case: TrainingCase) -> int | list[int] | list[list[int]]:
    share = case.model.num_layers // (case.num_stages * case.interleave)
    offset = [[layers - share for layers in part] for part in split_parts(case.layers_per_stage, case.interleave)]
    if not any(map(any, offset)):
        return 0
    return offset[0] if case.interleave == 1 else offset


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return overrides with a dotted key for every leaf."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value})
    return flat


def nest(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Convert dotted keys to nested sections."""
    tree: dict[str, Any] = {}
    for dotted, value in changes.items():
        *parents, key = dotted.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = value
    return tree


def render_changes(changes: Mapping[str, Any]) -> str:
    """Return the changes as YAML, one line per section."""
    lines = [
        yaml.safe_dump({name: value}, default_flow_style=None, sort_keys=False, width=10**6, allow_unicode=True)
        if not isinstance(value, dict)
        else f"{name}: {_render_flow(value)}\n"
        for name, value in nest(changes).items()
    ]
    return "".join(lines)


def _render_flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True).strip()


def write_config(target: Path, base: Path, changes: Mapping[str, Any], comment: str) -> None:
    """Write a configuration that applies `changes` to the one in `base`.

    Raises:
        ConfigError: when `target` is `base` or cannot be written.
    """
    if target.resolve() == base.resolve():
        raise ConfigError(f"--write {target}: is the configuration that is planned; give another file")
    relative = os.path.relpath(base.resolve(), target.resolve().parent)
    text = f"# {comment}\nbase_config: {_render_flow([relative])}\n{render_changes(changes)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--write {target}: cannot be written ({error.strerror}); choose another file") from None
