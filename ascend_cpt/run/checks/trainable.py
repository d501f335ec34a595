"""Checks of `cpt.trainable`, the patterns of the weights to train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.sections import find_section
from ascend_cpt.errors import ConfigError
from ascend_cpt.model.frozen import find_trainable_problem, list_first_rows
from ascend_cpt.model.sizes import read_sizes

# The update of this optimizer is zero for rows whose gradients are always zero and that have no weight decay.
ROW_OPTIMIZER = "AdamW"


def find_trainable_problems(config: RunConfig) -> list[str]:
    """Return a problem if the patterns do not fit the model, or if they conflict with another setting."""
    trainable = config.cpt.trainable
    if not trainable:
        return []
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
    return []
