"""Multi-stage training: runs in sequence, for example with increasing sequence length.

Each stage is a separate launch (graphs are compiled for one length) and starts from the weights of the previous stage.

All state is in the run folders: a stage is complete when its last step is saved. So the same command resumes after an
interruption, and all nodes of a cluster make the same decision. Without shared storage every stage is launched; its
processes compare their checkpoints and exit at once when all nodes have the last step.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ascend_cpt.checkpoint.locate import find_newest_complete
from ascend_cpt.cluster.launch.arguments import parse_launch
from ascend_cpt.cluster.launch.main import main as run_launcher
from ascend_cpt.config.train_stages import AdvanceConfig, StageConfig, load_stages
from ascend_cpt.errors import EXIT_OK, CheckpointError, ConfigError
from ascend_cpt.monitor.history import read_metrics
from ascend_cpt.run.export.at_end import is_export_missing
from ascend_cpt.run.export.target import check_target
from ascend_cpt.run.resolve import load_run
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.run.starting_point import choose_start
from ascend_cpt.run.summary import describe

EXIT_HELD = 3
METRICS_NAME = "metrics.jsonl"
# Shared storage may show files of other nodes with a delay.
VISIBILITY_TIMEOUT_S = 120.0
POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A resolved stage: its run, its training command, and the condition for starting the next stage."""

    name: str
    run: ResolvedRun
    command: str
    advance_when: AdvanceConfig | None
    needs_launch: bool
    """Whether only a launch can determine if the stage is complete: without shared storage a node sees its own disk."""

    @property
    def is_complete(self) -> bool:
        """Whether the last step of its run is saved, as visible from this node."""
        newest, _ = find_newest_complete(self.run.checkpoint_root)
        return newest is not None and newest.state.step >= self.run.budget.total_steps


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """Command-line options for stages, given by stage name."""

    extend: str | None = None
    """Extend this stage: its token budget was raised after it completed."""
    advance: str | None = None
    """Continue after this stage even if its loss has not recovered."""
    output_dir: str | None = None


def train_stages(path: Path, launch: Sequence[str], options: StageOptions, *, dry_run: bool = False) -> int:
    """Train the stages of a file one after the other; return the exit code.

    Args:
        path: The file of stages.
        launch: The arguments of scripts/msrun_launcher.sh after CMD.
        options: The command-line options for stages.
        dry_run: Print the plan of every stage without starting any.

    Returns:
        0: all are complete (or --dry-run). 3: a stage is held. Otherwise the launcher's exit code of the failed stage.

    Raises:
        CptError: before anything is started, when any stage is invalid.
    """
    stages = resolve_stages(path, launch, options)
    if dry_run:
        for stage in stages:
            print(f"--- stage {stage.name}{' (complete)' if stage.is_complete else ''}\n{describe(stage.run)}")
        return EXIT_OK
    for number, stage in enumerate(stages, start=1):
        title = f"stage {stage.name} ({number} of {len(stages)})"
        extend = options.extend == stage.name
        choose_start(stage.run, None, extend=extend)  # raises for a run folder with different settings
        if stage.is_complete and not stage.needs_launch and not is_export_missing(stage.run):
            print(f"{title}: complete in {stage.run.run_dir}", flush=True)
        else:
            print(f"{title}: {stage.command}", flush=True)
            code = run_launcher([f"{stage.command}{' --extend' if extend else ''}", *launch])
            if code != EXIT_OK:
                return code
            _wait_until_complete(stage)
        if number < len(stages) and not _may_advance(stages[0], stage, path, options):
            return EXIT_HELD
    print(f"all {len(stages)} stages are complete; the weights are in {stages[-1].run.run_dir}")
    return EXIT_OK


def resolve_stages(path: Path, launch: Sequence[str], options: StageOptions) -> list[Stage]:
    """Return the stages of a file, each resolved as far as possible before the previous stage has run.

    Raises:
        CptError: when any of them is invalid.
    """
    entries = load_stages(path)
    names = [entry.name for entry in entries]
    for option, name in (("--extend", options.extend), ("--advance", options.advance)):
        if name is not None and name not in names:
            raise ConfigError(f"{option} {name}: {path} has no such stage; its stages are {', '.join(names)}")
    stages: list[Stage] = []
    for entry in entries:
        stages.append(_resolve_stage(path, entry, launch, options, stages[-1] if stages else None))
        _check_comparable(stages[0], stages[-1])
    _check_extension(stages, options)
    _check_exports(stages)
    return stages


def _resolve_stage(
    path: Path, entry: StageConfig, launch: Sequence[str], options: StageOptions, before: Stage | None
) -> Stage:
    config_path = path.parent / entry.config
    overrides: dict[str, Any] = {"cpt.run_name": f"{path.stem}_{entry.name}", **entry.set}
    if options.output_dir is not None:
        overrides["output_dir"] = options.output_dir
    if before is not None:
        overrides["cpt.init_from"] = str(before.run.run_dir)
    # JSON is valid YAML.
    assignments = [f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in overrides.items()]
    command = " ".join([f"run_cpt.py --config {shlex.quote(str(config_path))}", *assignments])
    launched = parse_launch([command, *launch], os.environ, Path.cwd())
    run = load_run(config_path, overrides, world_size=launched.num_workers)
    return Stage(
        name=entry.name,
        run=run,
        command=command,
        advance_when=entry.advance_when,
        needs_launch=launched.num_nodes > 1 and not run.config.cpt.storage.shared,
    )


def _check_comparable(first: Stage, stage: Stage) -> None:
    """Check that the validation loss of `advance_when` is comparable between the first stage and this one.

    Raises:
        ConfigError: when a stage does not compute it, or computes it on different rows or in a different way.
    """
    if stage.advance_when is None:
        return
    name = stage.advance_when.set
    ways = []
    for each in (first, stage):
        cpt = each.run.config.cpt
        rows = {dataset.name: (dataset.manifest.digest, dataset.seq_length) for dataset in each.run.validation}
        if name not in rows:
            raise ConfigError(
                f"stage {stage.name}: advance_when.set {name} is not a validation set of stage {each.name}; add it to "
                f"cpt.validation.sets in {each.run.config.path}"
            )
        assert cpt.validation is not None
        ways.append((rows[name], cpt.validation.max_rows, cpt.document_attention))
    if ways[0] != ways[1]:
        raise ConfigError(
            f"stage {stage.name}: advance_when compares validation set {name} with stage {first.name}, which has "
            "a different dataset, seq_length, max_rows or document_attention for it; make them equal"
        )


def _check_exports(stages: Sequence[Stage]) -> None:
    """Check that every stage can write its export, and that no two stages write to one folder.

    Raises:
        ConfigError: when a folder is used twice or cannot be written.
    """
    targets: dict[Path, str] = {}
    for stage in stages:
        if (export := stage.run.config.cpt.export) is None:
            continue
        other = targets.setdefault(Path(export.to).absolute(), stage.name)
        if other != stage.name:
            raise ConfigError(
                f"stages {other} and {stage.name}: both export to {export.to}; give each its own cpt.export.to"
            )
        check_target(stage.run)


def _check_extension(stages: Sequence[Stage], options: StageOptions) -> None:
    for stage, after in pairwise(stages):
        if stage.name == options.extend and find_newest_complete(after.run.checkpoint_root)[0] is not None:
            raise ConfigError(
                f"--extend {stage.name}: stage {after.name} has already started from its weights; move "
                f"{after.run.run_dir} away, or extend the last stage"
            )


def _wait_until_complete(stage: Stage) -> None:
    deadline = time.monotonic() + VISIBILITY_TIMEOUT_S
    while not stage.is_complete:
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{stage.run.checkpoint_root}: the last step of stage {stage.name} is missing although its launch "
                "succeeded; all nodes must see the same output folder, or set cpt.storage.shared: false"
            )
        time.sleep(POLL_S)


def _may_advance(first: Stage, stage: Stage, path: Path, options: StageOptions) -> bool:
    """Return whether the next stage may start, and print the reason."""
    rule = stage.advance_when
    if rule is None:
        return True
    base = _find_loss(first, rule.set, 0)
    now = _find_loss(stage, rule.set, stage.run.budget.total_steps)
    increase = now - base
    figures = (
        f"loss of {rule.set}: {now:.4f}, {increase:+.4f} from {base:.4f} before stage {first.name} "
        f"(allowed: {rule.max_increase:+g})"
    )
    if increase <= rule.max_increase:
        print(f"stage {stage.name}: recovered: {figures}", flush=True)
        return True
    if options.advance == stage.name:
        print(f"stage {stage.name}: not recovered, continuing because of --advance: {figures}", flush=True)
        return True
    print(
        f"stage {stage.name}: held: {figures}. Raise its cpt.train_tokens in {path} and run the same command with "
        f"--extend {stage.name}, or continue anyway with --advance {stage.name}",
        flush=True,
    )
    return False


def _find_loss(stage: Stage, name: str, step: int) -> float:
    """Return the loss of a validation set at a step of a stage's run.

    Raises:
        CheckpointError: when it does not appear in the run's metrics within the timeout.
    """
    path = stage.run.run_dir / METRICS_NAME
    deadline = time.monotonic() + VISIBILITY_TIMEOUT_S
    while True:
        for record in read_metrics(path):
            if record["kind"] == "validation" and record["name"] == name and record["step"] == step:
                return float(record["loss"])
        if time.monotonic() > deadline:
            raise CheckpointError(f"{path}: no loss of validation set {name} at step {step}")
        time.sleep(POLL_S)
