"""The file that lists the stages of a training. Each field is documented by the string below it."""

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
# Set from the previous stage.
INHERITED_KEYS = ("cpt.init_from", "load_checkpoint")


@dataclass(frozen=True, kw_only=True)
class AdvanceConfig:
    """Condition for starting the next stage."""

    set: str
    """Name of a validation set that this stage and the first stage share, packed with short rows."""
    max_increase: float
    """Maximum increase of its loss, in nats, from before the first stage to after this one."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One run in a sequence of runs."""

    name: str
    """Name of the stage; part of the name of its run folder."""
    config: str
    """Path of the configuration, relative to the stage file."""
    set: dict[str, Any] = field(default_factory=dict)
    """Overrides of configuration keys (dotted key → value), as with --set."""
    advance_when: AdvanceConfig | None = None
    """Condition for starting the next stage; default: this stage is complete."""


def load_stages(path: Path) -> tuple[StageConfig, ...]:
    """Return the stages of a file, in order.

    Raises:
        ConfigError: lists every problem with its file and line.
    """
    tree = load_yaml_tree(path)
    problems = [
        f"{tree.locate((key,))}: {key}: unknown key{nearest(key, (KEY,))}" for key in map(str, tree.data) if key != KEY
    ]
    if not tree.data.get(KEY):
        raise ConfigError(f"{path}: has no `{KEY}:`; add the list of stages (see docs/long_context.md)")
    stages: tuple[StageConfig, ...] = convert_value(tuple[StageConfig, ...], tree.data[KEY], (KEY,), tree, problems)
    raise_problems(path, problems)
    seen: set[str] = set()
    for index, stage in enumerate(stages):
        where = f"{tree.locate((KEY, str(index), 'name'))}: stage {stage.name!r}"
        if not re.fullmatch(r"[\w.-]+", stage.name):
            problems.append(f"{where}: used in a folder name; use only letters, digits, '_', '-' and '.'")
        if stage.name in seen:
            problems.append(f"{where}: duplicate name; rename one")
        seen.add(stage.name)
        problems += [
            f"{where}: sets {key}, but it starts from the previous stage; remove the key"
            for key in INHERITED_KEYS
            if index and key in stage.set
        ]
        if stage.advance_when is not None and index == len(stages) - 1:
            problems.append(f"{where}: advance_when in the last stage has no effect; remove it")
    raise_problems(path, problems)
    return stages
