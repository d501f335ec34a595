"""Checks of `cpt.lora`, the low-rank adapters to train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.sections import find_section
from ascend_cpt.errors import ConfigError
from ascend_cpt.model.lora import find_lora_problem
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.run.resolved_run import RANDOM_INIT, read_lora

# Other optimizers treat weights by name or layer, and have not been tried with adapters.
OPTIMIZER = "AdamW"


def find_lora_problems(config: RunConfig) -> list[str]:
    """Return a problem if the adapters do not fit the model, or if they conflict with another setting."""
    settings = read_lora(config)
    if settings is None:
        return []
    where = f"{config.locate('cpt', 'lora')}: cpt.lora"
    model: Any = find_section(config.mindformers, "model.model_config")
    if not isinstance(model, Mapping):
        return []  # reported by the checks of the model
    if config.cpt.trainable:
        return [f"{where}: trains only adapters, but cpt.trainable also selects trained weights; remove one of them"]
    if model.get("pet_config") is not None:
        return [f"{where}: model.model_config.pet_config also selects the trained weights; remove one of them"]
    if config.initial_weights == RANDOM_INIT:
        return [f"{where}: adapters need trained weights, but cpt.init_from is {RANDOM_INIT}; give a model or a run"]
    optimizer: Any = find_section(config.mindformers, "optimizer")
    kind = optimizer.get("type") if isinstance(optimizer, Mapping) else None
    if kind != OPTIMIZER:
        return [f"{where}: requires optimizer.type {OPTIMIZER}, not {kind}"]
    try:
        sizes = read_sizes(model)
    except ConfigError:
        return []  # reported by the checks of the model
    problem = find_lora_problem(sizes, settings)
    return [f"{where}: {problem}"] if problem else []
