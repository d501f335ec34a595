"""Checks of `cpt.trainable`, the patterns of the weights to train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.config.sections import find_section
from ascend_cpt.errors import ConfigError
from ascend_cpt.model.frozen import find_trainable_problem, list_first_rows, list_frozen
from ascend_cpt.model.sizes import read_sizes

# The update of this optimizer is zero for rows whose gradients are always zero and that have no weight decay.
ROW_OPTIMIZER = "AdamW"


def find_trainable_problems(config: RunConfig) -> list[str]:
    """Return a problem if the patterns do not fit the model, or if they conflict with another setting."""
    trainable = config.cpt.trainable
    if not trainable:
        return find_stage_problems(config)
    where = f"{config.locate('cpt', 'trainable')}: cpt.trainable"
    model: Any = find_section(config.mindformers, "model.model_config")
    if not isinstance(model, Mapping):
        return []  # reported by the checks of the model
    if model.get("pet_config") is not None:
        return [f"{where}: model.model_config.pet_config also selects the trained weights; remove one of them"]
    try:
        sizes = read_sizes(model)
    except ConfigError:
        return []  # reported by the checks of the model
    if problem := find_trainable_problem(sizes, trainable):
        return [f"{where}: {problem}"]
    optimizer: Any = find_section(config.mindformers, "optimizer")
    kind = optimizer.get("type") if isinstance(optimizer, Mapping) else None
    if list_first_rows(sizes, trainable) and kind != ROW_OPTIMIZER:
        return [f"{where}: [N:] requires optimizer.type {ROW_OPTIMIZER}, not {kind}"]
    return find_stage_problems(config)


def find_stage_problems(config: RunConfig) -> list[str]:
    """Return a problem if weights are frozen (`cpt.trainable`, `pet_config`) and NPUs have several pipeline stages.

    metadata.json would lack the frozen weights of the other stages, so a resumed run would not load them.
    """
    parallel: Any = find_section(config.mindformers, "parallel_config")
    stages = (parallel.get("pipeline_stage") or 1) if isinstance(parallel, Mapping) else 1
    model: Any = find_section(config.mindformers, "model.model_config")
    if stages == 1 or uses_cpu(config) or not isinstance(model, Mapping):
        return []
    try:
        frozen = list_frozen(read_sizes(model), model.get("pet_config"), config.cpt.trainable)
    except ConfigError:
        return []  # reported by the checks of the model
    if not frozen:
        return []
    key = ("cpt", "trainable") if config.cpt.trainable else ("model", "model_config", "pet_config")
    where = f"{config.locate(*key)}: {'.'.join(key)}"
    return [f"{where}: checkpoints of frozen weights need pipeline_stage 1, not {stages}"]
