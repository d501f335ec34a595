"""The file that names the stages of a training. The text under a field is its documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascend_cpt.config.loader import convert_value, raise_problems
from ascend_cpt.config.sections import nearest
from ascend_cpt.config.yaml_file import load_yaml_tree
from ascend_cpt.errors import ConfigError

KEY = "stages"
# What a stage is given by the one before it.
INHERITED_KEYS = ("cpt.init_from", "load_checkpoint")


@dataclass(frozen=True, kw_only=True)
class AdvanceConfig:
    """When the next stage may start."""

    set: str
    """A validation set of this stage and of the first one: the same dataset, packed with short rows."""
    max_increase: float
    """Its loss after this stage is at most so many nats above the base: what it was before the first stage."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One run among those that follow one another."""

    name: str
    """Its run folder is called after the file and this name."""
    config: str
    """The configuration, relative to this file."""
    set: dict[str, Any] = field(default_factory=dict)
    """Dotted keys that this stage sets otherwise, as with --set."""
    advance_when: AdvanceConfig | None = None
    """Without it the next stage starts as soon as this one is complete."""


def load_stages(path: Path) -> tuple[StageConfig, ...]:
    """Return the stages that a file names, in order.

    Raises:
        ConfigError: naming every problem with its file and line.
    """
    tree = load_yaml_tree(path)
    problems = [
        f"{tree.locate((key,))}: {key}: unknown key{nearest(key, (KEY,))}" for key in map(str, tree.data) if key != KEY
    ]
    if not tree.data.get(KEY):
        raise ConfigError(f"{path}: names no {KEY}; see docs/long_context.md")
    stages: tuple[StageConfig, ...] = convert_value(tuple[StageConfig, ...], tree.data[KEY], (KEY,), tree, problems)
    raise_problems(path, problems)
    seen: set[str] = set()
    for index, stage in enumerate(stages):
        where = f"{tree.locate((KEY, str(index), 'name'))}: stage {stage.name!r}"
        if not re.fullmatch(r"[\w.-]+", stage.name):
            problems.append(f"{where}: becomes part of a folder's name; use letters, digits, '_', '-' and '.'")
        if stage.name in seen:
            problems.append(f"{where}: is named twice")
        seen.add(stage.name)
        problems += [
            f"{where}: sets {key}, but starts from the stage before it; remove the key"
            for key in INHERITED_KEYS
            if index and key in stage.set
        ]
        if stage.advance_when is not None and index == len(stages) - 1:
            problems.append(f"{where}: advance_when in the last stage: nothing comes after it; remove it")
    raise_problems(path, problems)
    return stages
