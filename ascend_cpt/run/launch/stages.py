"""Prepares the configuration and command of each stage of multi-stage training, before any dataset is open."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.cluster.launch.arguments import parse_launch
from ascend_cpt.config.loader import RunConfig, load_config
from ascend_cpt.config.train_stages import StageConfig, load_stages
from ascend_cpt.errors import ConfigError
from ascend_cpt.run.raw_sources import RawSource, find_raw_sources, list_packed
from ascend_cpt.run.resolve import find_run_dir


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """Command-line options for stages, given by stage name."""

    extend: str | None = None
    """Extend this stage: its token budget was raised after it completed."""
    advance: str | None = None
    """Continue after this stage even if the conditions of its `advance_when` are not met."""
    output_dir: str | None = None
    reshard: bool = False
    """Continue a stage in another parallel layout than the one it was saved in."""


@dataclass(frozen=True, kw_only=True)
class StageLaunch:
    """How to launch a stage whose configuration is loaded but whose datasets are not open yet."""

    entry: StageConfig
    config: RunConfig
    overrides: dict[str, Any]
    command: str
    num_workers: int
    is_split: bool
    """Whether each of several nodes has its own storage, so that a node cannot see what the others have."""
    raw: tuple[RawSource, ...]

    @property
    def packed(self) -> dict[str, str] | None:
        """The prefixes of the packed datasets, or None while one is not visible on this node."""
        return list_packed(self.raw)


def plan_launches(path: Path, launch: Sequence[str], options: StageOptions) -> list[StageLaunch]:
    """Return how to launch the stages in a file. This reads configurations and raw text but no datasets.

    Raises:
        CptError: when a file, a launch argument or the raw text is invalid.
    """
    entries = load_stages(path)
    names = [entry.name for entry in entries]
    for option, name in (("--extend", options.extend), ("--advance", options.advance)):
        if name is not None and name not in names:
            raise ConfigError(f"{option} {name}: {path} has no such stage; its stages are {', '.join(names)}")
    launches: list[StageLaunch] = []
    for entry in entries:
        launches.append(_plan_launch(path, entry, launch, options, launches[-1] if launches else None))
    return launches


def _plan_launch(
    path: Path, entry: StageConfig, launch: Sequence[str], options: StageOptions, before: StageLaunch | None
) -> StageLaunch:
    config_path = path.parent / entry.config
    overrides: dict[str, Any] = {"cpt.run_name": f"{path.stem}_{entry.name}", **entry.set}
    if options.output_dir is not None:
        overrides["output_dir"] = options.output_dir
    if before is not None:
        overrides["cpt.init_from"] = str(find_run_dir(before.config))
    # JSON is valid YAML.
    assignments = [f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in overrides.items()]
    command = " ".join([f"run_cpt.py --config {shlex.quote(str(config_path))}", *assignments])
    launched = parse_launch([command, *launch], os.environ, Path.cwd())
    config = load_config(config_path, overrides)
    return StageLaunch(
        entry=entry,
        config=config,
        overrides=overrides,
        command=command,
        num_workers=launched.num_workers,
        is_split=launched.num_nodes > 1 and not config.cpt.storage.shared,
        raw=tuple(find_raw_sources(config)),
    )
