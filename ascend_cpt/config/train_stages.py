"""The file that lists the stages of a multi-stage training run. Each field is documented by the string below it."""

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
    """Conditions for starting the next stage: `set` with `max_increase`, `needle`, or both."""

    set: str | None = None
    """Name of a validation set that this stage and the first stage share, packed with short rows."""
    max_increase: float | None = None
    """Maximum increase of its loss, in nats, from before the first stage to after this one."""
    needle: float | None = None
    """Minimum score of a needle task after this stage, 0 to 1."""
    needle_task: str | None = None
    """Name of that task; default: the stage's only task of kind needle."""


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
    """Conditions for starting the next stage; default: this stage is complete."""


def load_stages(path: Path) -> tuple[StageConfig, ...]:
    """Return the stages in a file, in order.

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
            problems.append(f"{where}: the name is part of a folder name; use only letters, digits, '_', '-' and '.'")
        if stage.name in seen:
            problems.append(f"{where}: duplicate name; rename one")
        seen.add(stage.name)
        problems += [
            f"{where}: sets {key}, but it starts from the previous stage; remove the key"
            for key in INHERITED_KEYS
            if index and key in stage.set
        ]
        if stage.advance_when is not None:
            if index == len(stages) - 1:
                problems.append(f"{where}: advance_when in the last stage has no effect; remove it")
            place = f"{tree.locate((KEY, str(index), 'advance_when'))}: {KEY}.{index}.advance_when"
            problems += [f"{place}{problem}" for problem in _find_rule_problems(stage.advance_when)]
    raise_problems(path, problems)
    return stages


def _find_rule_problems(rule: AdvanceConfig) -> list[str]:
    """Return the ends of messages about conditions that are incomplete or impossible."""
    problems = []
    if rule.set is not None and rule.max_increase is None:
        problems.append(".max_increase: missing; add it, because set is given")
    if rule.max_increase is not None and rule.set is None:
        problems.append(".set: missing; add it, because max_increase is given")
    if rule.needle_task is not None and rule.needle is None:
        problems.append(".needle: missing; add the minimum score of needle_task")
    if rule.needle is not None and not 0 <= rule.needle <= 1:
        problems.append(f".needle: must be between 0 and 1, got {rule.needle:g}")
    if rule == AdvanceConfig():
        problems.append(": has no condition; add set and max_increase, or needle")
    return problems
