"""Multi-stage training: a sequence of runs, for example with increasing sequence length.

Each stage is a separate launch, because graphs are compiled for one length, and starts from the previous weights.

All state is in the run folders: a stage is complete once its last step is saved. The same command therefore resumes
after an interruption, and all nodes of a cluster make the same decision. Without shared storage, every stage is
launched; its processes compare checkpoints and exit at once if all nodes have the last step.

The raw text for all stages is packed before the first one starts, because checking a stage requires its datasets.
This takes one launch of run_cpt.py per stage, whose processes agree on which of them packs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ascend_cpt.checkpoint.locate import find_newest_complete
from ascend_cpt.cluster.launch.main import main as run_launcher
from ascend_cpt.config.train_stages import AdvanceConfig
from ascend_cpt.errors import EXIT_OK, CheckpointError, ConfigError
from ascend_cpt.monitor.history import METRICS_NAME, read_metrics
from ascend_cpt.run.evaluation.tasks import find_tokenizer
from ascend_cpt.run.export.at_end import is_export_missing
from ascend_cpt.run.export.target import check_target
from ascend_cpt.run.launch.command_line import PACK_ONLY
from ascend_cpt.run.launch.stages import StageLaunch, StageOptions, plan_launches
from ascend_cpt.run.resolve import load_run
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.run.starting_point import choose_start
from ascend_cpt.run.summary import describe
from ascend_cpt.tasks.check import NEEDLE

EXIT_HELD = 3
# Files from other nodes may appear on shared storage with a delay.
VISIBILITY_TIMEOUT_S = 120.0
POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A resolved stage, with its run, its training command and the conditions for starting the next stage."""

    name: str
    run: ResolvedRun
    command: str
    advance_when: AdvanceConfig | None
    needs_launch: bool
    """Whether only a launch can determine if the stage is complete: without shared storage a node sees its own disk."""

    @property
    def is_complete(self) -> bool:
        """Whether this node can see that the run's last step is saved."""
        newest, _ = find_newest_complete(self.run.checkpoint_root)
        return newest is not None and newest.state.step >= self.run.budget.total_steps


def train_stages(path: Path, launch: Sequence[str], options: StageOptions, *, dry_run: bool = False) -> int:
    """Train the stages in a file one after another and return the exit code.

    Args:
        path: The stages file.
        launch: The arguments of scripts/msrun_launcher.sh after CMD.
        options: The command-line options for stages.
        dry_run: Print the plan of every stage without starting any.

    Returns:
        0 if all stages are complete (or --dry-run), 3 if a stage is held, else the failed stage's launcher exit code.

    Raises:
        CptError: before anything is started, when any stage is invalid.
    """
    launches = plan_launches(path, launch, options)
    if dry_run:
        _print_plan(path, launch, options, launches)
        return EXIT_OK
    if (code := _pack_raw_text(launches, launch)) != EXIT_OK:
        return code
    stages = resolve_stages(path, launch, options, launches)
    for number, stage in enumerate(stages, start=1):
        title = f"stage {stage.name} ({number} of {len(stages)})"
        extend = options.extend == stage.name
        # Raises for a run folder with different settings.
        choose_start(stage.run, None, extend=extend, reshard=options.reshard)
        if stage.is_complete and not stage.needs_launch and not is_export_missing(stage.run):
            print(f"{title}: complete in {stage.run.run_dir}", flush=True)
        else:
            print(f"{title}: {stage.command}", flush=True)
            flags = f"{' --extend' if extend else ''}{' --reshard' if options.reshard else ''}"
            code = run_launcher([f"{stage.command}{flags}", *launch])
            if code != EXIT_OK:
                return code
            _wait_until_complete(stage)
        if number < len(stages) and not _may_advance(stages[0], stage, path, options):
            return EXIT_HELD
    print(f"all {len(stages)} stages are complete; the weights are in {stages[-1].run.run_dir}")
    return EXIT_OK


def _pack_raw_text(launches: Sequence[StageLaunch], arguments: Sequence[str]) -> int:
    """Pack each stage's raw text, with a launch per stage that needs it. Return the exit code of a failed launch.

    Without shared storage, a node does not know what the others have, so every stage with raw text is launched.
    """
    for each in launches:
        if each.raw and (each.is_split or each.packed is None):
            print(f"stage {each.entry.name}: packing: {each.command} {PACK_ONLY}", flush=True)
            code = run_launcher([f"{each.command} {PACK_ONLY}", *arguments])
            if code != EXIT_OK:
                return code
    return EXIT_OK


def _print_plan(path: Path, arguments: Sequence[str], options: StageOptions, launches: Sequence[StageLaunch]) -> None:
    """Print what would be packed and, if all stages are packed, the plan of every stage."""
    is_packed = all(each.packed is not None for each in launches)
    stages = resolve_stages(path, arguments, options, launches) if is_packed else []
    for number, each in enumerate(launches):
        complete = " (complete)" if stages and stages[number].is_complete else ""
        print("\n".join([f"--- stage {each.entry.name}{complete}", *(source.describe() for source in each.raw)]))
        if stages:
            print(describe(stages[number].run))
    if not is_packed:
        print("plan     needs the packed data; the same command without --dry-run packs it before the first stage")


def resolve_stages(
    path: Path, launch: Sequence[str], options: StageOptions, launches: Sequence[StageLaunch] | None = None
) -> list[Stage]:
    """Return the stages in a file, each resolved as far as possible before the previous one has run.

    Args:
        path: The stages file.
        launch: The arguments of scripts/msrun_launcher.sh after CMD.
        options: The command-line options for stages.
        launches: How to launch the stages, if already known.

    Raises:
        CptError: when any stage is invalid.
    """
    stages: list[Stage] = []
    for each in launches or plan_launches(path, launch, options):
        stages.append(_resolve_stage(each))
        _check_rule(stages[0], stages[-1])
    _check_extension(stages, options)
    _check_exports(stages)
    return stages


def _resolve_stage(launch: StageLaunch) -> Stage:
    run = load_run(launch.config.path, launch.overrides, world_size=launch.num_workers, packed=launch.packed)
    if run.config.cpt.validation is not None and run.config.cpt.validation.tasks:
        find_tokenizer(run.config)  # raises if a stage that starts from a run has no tokenizer for its tasks
    return Stage(
        name=launch.entry.name,
        run=run,
        command=launch.command,
        advance_when=launch.entry.advance_when,
        needs_launch=launch.is_split,
    )


def _check_rule(first: Stage, stage: Stage) -> None:
    """Check that the conditions of `advance_when` can be evaluated.

    Raises:
        ConfigError: when a stage does not compute the loss or the score, or the losses are not comparable.
    """
    if stage.advance_when is None:
        return
    if stage.advance_when.set is not None:
        _check_comparable(first, stage, stage.advance_when.set)
    if stage.advance_when.needle is not None:
        _find_needle_task(stage)


def _check_comparable(first: Stage, stage: Stage, name: str) -> None:
    """Check that a validation set's loss is comparable between the first stage and this one.

    Raises:
        ConfigError: when a stage does not compute the loss, or computes it on different rows or differently.
    """
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


def _find_needle_task(stage: Stage) -> str:
    """Return the name of the task used by `advance_when.needle`.

    Raises:
        ConfigError: when the stage has no such task, or has several and none is named.
    """
    assert stage.advance_when is not None
    config = stage.run.config
    tasks = config.cpt.validation.tasks if config.cpt.validation else {}
    needles = [name for name, task in tasks.items() if task.kind == NEEDLE]
    name = stage.advance_when.needle_task
    if name is None and len(needles) == 1:
        return needles[0]
    if name in needles:
        return name
    where = f"stage {stage.name}: advance_when.{'needle' if name is None else 'needle_task'}"
    if not needles:
        raise ConfigError(
            f"{where}: needs a task of kind needle; add one to cpt.validation.tasks in {config.path} or in `set`"
        )
    problem = "the stage has several needle tasks" if name is None else f"{name} is not a needle task of the stage"
    raise ConfigError(f"{where}: {problem}; set needle_task to one of {', '.join(needles)}")


def _check_exports(stages: Sequence[Stage]) -> None:
    """Check that every stage can write its export and that no two stages share a folder.

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
    checks = []
    try:
        if rule.set is not None and rule.max_increase is not None:
            checks.append(_check_loss(first, stage, rule.set, rule.max_increase))
        if rule.needle is not None:
            checks.append(_check_needle(stage, rule.needle))
    except CheckpointError as error:
        if options.advance != stage.name:
            raise
        checks.append((False, str(error)))
    failed = [figures for is_met, figures in checks if not is_met]
    if not failed:
        print(f"stage {stage.name}: may advance: {'; '.join(figures for _, figures in checks)}", flush=True)
        return True
    if options.advance == stage.name:
        print(f"stage {stage.name}: not ready, continuing because of --advance: {'; '.join(failed)}", flush=True)
        return True
    print(
        f"stage {stage.name}: held: {'; '.join(failed)}. Raise its cpt.train_tokens in {path} and run the same command "
        f"with --extend {stage.name}, or continue anyway with --advance {stage.name}",
        flush=True,
    )
    return False


def _check_loss(first: Stage, stage: Stage, name: str, max_increase: float) -> tuple[bool, str]:
    """Return whether a validation set's loss has recovered, along with the figures."""
    base = float(_find_record(first, "validation", name, 0)["loss"])
    now = float(_find_record(stage, "validation", name, stage.run.budget.total_steps)["loss"])
    return now - base <= max_increase, (
        f"loss of {name}: {now:.4f}, {now - base:+.4f} from {base:.4f} before stage {first.name} "
        f"(allowed: {max_increase:+g})"
    )


def _check_needle(stage: Stage, minimum: float) -> tuple[bool, str]:
    """Return whether the needle task's score is high enough, along with the figures."""
    name = _find_needle_task(stage)
    record = _find_record(stage, "task", name, stage.run.budget.total_steps)
    score = float(record["score"])
    return score >= minimum, f"{record['metric']} of {name}: {score:.4f} (required: {minimum:g})"


def _find_record(stage: Stage, kind: str, name: str, step: int) -> dict[str, Any]:
    """Return the record of a validation set (`kind` is validation) or task (`task`) at one step of a stage's run.

    Raises:
        CheckpointError: when the record does not appear in the run's metrics within the timeout.
    """
    path = stage.run.run_dir / METRICS_NAME
    deadline = time.monotonic() + VISIBILITY_TIMEOUT_S
    while True:
        for record in read_metrics(path):
            if record["kind"] == kind and record["name"] == name and record["step"] == step:
                return record
        if time.monotonic() > deadline:
            wanted = f"loss of validation set {name}" if kind == "validation" else f"score of task {name}"
            advice = (
                f"evaluate it with tools/evaluate.py {stage.run.run_dir} --config YAML --watch"
                if step
                else f"it is recorded only before the first step; to continue without it, pass --advance {stage.name}"
            )
            raise CheckpointError(f"{path}: no {wanted} at step {step}; {advice}")
        time.sleep(POLL_S)
