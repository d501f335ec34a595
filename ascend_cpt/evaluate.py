"""The program behind tools/evaluate.py: evaluates a run, a checkpoint or a Hugging Face folder, or follows a run."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ascend_cpt.backend.training.msrun_scheduler import is_scheduler, serve_workers
from ascend_cpt.checkpoint.locate import check_checkpoint, locate_checkpoint
from ascend_cpt.cluster.job.channel import JobChannel, join_job
from ascend_cpt.cluster.job.launcher_files import report_own_stop
from ascend_cpt.config.loader import load_config, parse_assignments
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.errors import CheckpointError, ConfigError, CptError
from ascend_cpt.files import write_text
from ascend_cpt.model.sizes import CONFIG_NAME
from ascend_cpt.monitor.console import captured_output
from ascend_cpt.monitor.forgetting import AlarmVerdict, ForgettingAlarm, describe_stop, make_alarm
from ascend_cpt.monitor.history import JUDGED_KINDS, METRICS_NAME, read_metrics
from ascend_cpt.monitor.record import Judged, ValidationRecord, to_values
from ascend_cpt.monitor.sinks import format_task, format_validation
from ascend_cpt.monitor.trackers import EvaluationTrackers
from ascend_cpt.run.checks.job import verify_data
from ascend_cpt.run.checks.monitoring import find_monitoring_problems
from ascend_cpt.run.evaluation.command_line import collect_settings, parse_arguments
from ascend_cpt.run.evaluation.needles import open_haystacks
from ascend_cpt.run.evaluation.nodes import RunFolders, check_parts, choose_parts, follow, link_parts
from ascend_cpt.run.evaluation.plan import EvaluationPlan, EvaluationSettings, make_plan, open_sets
from ascend_cpt.run.evaluation.tasks import describe_tasks
from ascend_cpt.run.evaluation.watching import (
    append_records,
    drop_recorded,
    hold_watch_lock,
    identify,
    list_pending,
    request_stop,
)
from ascend_cpt.run.launch.command_line import Process, read_process
from ascend_cpt.run.verified import Verifier

if TYPE_CHECKING:
    from ascend_cpt.backend.evaluation_network import EvaluationNetwork

_ONE_DEVICE = ParallelLayout(world_size=1, data_parallel=1)  # the checks of alarms do not depend on the layout


def main(argv: list[str] | None = None) -> int:
    """Evaluate and return the exit code."""
    args = parse_arguments(argv)
    if is_scheduler():
        serve_workers()
        return 0
    run = follow(args.model) if args.watch else None
    with open_evaluation(args) as evaluation:
        return evaluation.run_once() if run is None else evaluation.watch(run)


@contextlib.contextmanager
def open_evaluation(args: argparse.Namespace) -> Iterator[Evaluation]:
    """Yield the evaluation that the options of `add_evaluation_options` describe, after joining the job.

    Raises:
        ConfigError: there is nothing to evaluate, or the configuration has errors.
        DataError: a dataset or a task file is missing or damaged.
    """
    process = read_process()
    config = load_config(args.config, parse_assignments(args.set)) if args.config else None
    if config is None and args.set:
        raise ConfigError("--set: overrides keys of a configuration; give one with --config")
    settings = collect_settings(args, config)
    datasets = [*open_sets(settings).values(), *open_haystacks(settings.tasks).values()]
    if config is not None and (problems := find_monitoring_problems(config, _ONE_DEVICE)):
        raise ConfigError("\n".join(problems))
    with join_job(process.rank, process.world_size) as channel, contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ascend_cpt_evaluate_")))
        os.environ.setdefault("LOG_MF_PATH", str(logs))
        console = stack.enter_context(captured_output(logs / "mindformers.log"))
        if not args.no_verify:
            verify_data(datasets if channel.is_first_on_node else (), channel)
        try:
            yield Evaluation(
                args=args, settings=settings, process=process, channel=channel, console=console, scratch=logs
            )
        except CptError:
            raise
        except Exception:
            print((logs / "mindformers.log").read_text(encoding="utf-8", errors="replace")[-4000:], file=console)
            raise


class Evaluation:
    """The evaluation of one process."""

    def __init__(
        self,
        *,
        args: argparse.Namespace,
        settings: EvaluationSettings,
        process: Process,
        channel: JobChannel,
        console: TextIO,
        scratch: Path,
    ) -> None:
        self._scratch = scratch
        self._args, self.settings = args, settings
        self._process, self.channel, self._console = process, channel, console
        self.is_first = process.rank == 0
        # Each node verifies what it loads, because it is not known here whether the nodes share storage.
        self._verifier = Verifier(channel=channel, shared=False, weights_only=True, enabled=not args.no_verify)
        self._network: EvaluationNetwork | None = None
        self._plan: EvaluationPlan | None = None

    def run_once(self) -> int:
        """Evaluate the given weights, print the results and write them to --json."""
        records = self.evaluate(*self._choose())
        if self._args.json and self.is_first:
            write_text(self._args.json, json.dumps([to_values(record) for record in records], indent=1) + "\n")
        return 0

    def evaluate(self, parts: Sequence[Path], step: int = 0) -> list[Judged]:
        """Evaluate a Hugging Face folder, or the folders of a checkpoint's parts, and print the results.

        Raises:
            CheckpointError: the weights are damaged, deleted or from another model.
        """
        if not self._load(parts):
            raise CheckpointError(f"{parts[0]}: was deleted while it was being loaded; choose a newer checkpoint")
        records = self._evaluate(parts[0], step)
        self._print_records(records)
        return records

    def _choose(self) -> tuple[list[Path], int]:
        """Return the weights' folder, or the folders of a checkpoint's parts, and the step.

        Raises:
            CheckpointError: when no checkpoint is complete and undamaged.
        """
        paths: list[Path] = self._args.model
        if len(paths) == 1 and (paths[0] / CONFIG_NAME).is_file():
            return paths, 0
        if len(paths) == 1:
            checkpoint, skipped = self._verifier.locate(paths[0])
            for line in skipped:
                self.print(f"warning: skipped an unusable checkpoint: {line}")
            for line in self._verifier.note_unverified(checkpoint):
                self.print(f"warning: {line}")
            return [checkpoint.folder], checkpoint.state.step
        # The run may save another step meanwhile, so all processes evaluate the step seen by the first process.
        chosen = [str(part) for part in choose_parts(paths)] if self.is_first else []
        parts = [Path(part) for part in self.channel.all_gather("checkpoint", chosen)[0]]
        if problem := self._find_damage(parts):
            raise CheckpointError(problem)
        return parts, locate_checkpoint(parts[0]).state.step

    def _find_damage(self, parts: Sequence[Path]) -> str:
        problems = [self._verifier.find_damage(part) for part in parts]
        return next(filter(None, problems), "")

    def watch(self, run: RunFolders) -> int:
        """Evaluate every new complete checkpoint until the run is over. Return 1 if an alarm asked the run to stop."""
        names = [("validation", name) for name in self.settings.sets]
        names += [("task", name) for name in self.settings.tasks]
        alarm: ForgettingAlarm | None = None
        given_up: set[int] = set()
        with contextlib.ExitStack() as stack:
            trackers: EvaluationTrackers | None = None
            if self.is_first:
                stack.enter_context(hold_watch_lock(run.main))
                trackers = stack.enter_context(contextlib.closing(EvaluationTrackers(run.main, self._console)))
                trackers.update()  # what an earlier watcher recorded before it was killed
            while (step := self._wait(run, names, given_up)) is not None:
                parts = run.locate(step)
                problem = self._find_damage(parts)
                # All processes use the first one's view, because a part may be deleted at any time.
                checkpoint = self.channel.all_gather("checkpoint to evaluate", _identify(parts))[0]
                if problem or not checkpoint or not self._load(parts):
                    self.print(f"{problem or f'{parts[0]}: was deleted before it was evaluated'}; skipped")
                    given_up.add(step)
                    continue
                records = self._evaluate(parts[0], step)
                message = ""
                if trackers is not None:
                    alarm = alarm or self._make_alarm(run.main)
                    new = drop_recorded(run.main, records, checkpoint)
                    message = self._record(run.main, [alarm.judge(record) for record in new], checkpoint)
                    trackers.update()
                # The first process decides for all of them.
                message = self.channel.all_gather("verdict", message)[0]
                if message:
                    if self.is_first and not run.is_over():
                        request_stop(run.main, message)
                    self.print(f"asked the run to stop: {message}")
                    report_own_stop()
                    return 1
        self.print(f"{run.main}: the run has ended, and all its checkpoints have been evaluated")
        return 0

    def _wait(self, run: RunFolders, names: Collection[tuple[str, str]], given_up: Collection[int]) -> int | None:
        """Return the next step to evaluate, or None if the run is over."""
        is_waiting = False
        while True:
            over = run.is_over()
            pending = [step for step in list_pending(run, names) if step not in given_up]
            # A checkpoint may be complete only on some nodes, so evaluate the first one visible to all processes.
            views = self.channel.all_gather("pending checkpoints", [pending, over])
            common = set.intersection(*(set(view[0]) for view in views))
            if common:
                return int(min(common))
            if all(view[1] for view in views):
                return None
            if not is_waiting:
                self.print(f"{run.main}: waiting for the next checkpoint")
            is_waiting = True
            time.sleep(self._args.poll)

    def _record(self, run_dir: Path, verdicts: Sequence[AlarmVerdict], checkpoint: str) -> str:
        """Record and print the results. If one stops the run, return its message."""
        append_records(run_dir, [verdict.record for verdict in verdicts], checkpoint)
        self._print_records([verdict.record for verdict in verdicts])
        for verdict in verdicts:
            if verdict.message:
                self.print(f"warning: {verdict.message}")
        stopping = [verdict for verdict in verdicts if verdict.stop]
        return describe_stop(stopping) if stopping else ""

    def _load(self, parts: Sequence[Path]) -> bool:
        """Load the weights in all processes. Return False if a file disappeared for any process."""
        is_loaded = False
        try:
            path = self._gather(parts)
            if path is not None:
                network = self._prepare(path)
                start_s = time.monotonic()
                network.load(path)
                self.print(f"{path}: loaded in {time.monotonic() - start_s:.1f} s")
                is_loaded = True
        except Exception:
            if not _are_damaged(parts):
                raise
        return all(self.channel.all_gather("weights", is_loaded))

    def _gather(self, parts: Sequence[Path]) -> Path | None:
        """Have the first process collect the files of all parts. Return their folder, or None if a part is gone."""
        if len(parts) == 1:
            return parts[0]
        shutil.rmtree(self._scratch / "gathered", ignore_errors=True)  # from the previous checkpoint
        gathered = ""
        if self.is_first:
            try:
                gathered = str(link_parts(parts, self._scratch / "gathered"))
            except (CheckpointError, OSError):
                if not _are_damaged(parts):
                    raise
        gathered = self.channel.all_gather("gathered checkpoint", gathered)[0]
        if gathered and not Path(gathered).is_dir():
            raise CheckpointError(
                f"{gathered}: not visible to this process; to evaluate several folders, start all processes on one "
                "machine, or gather the checkpoint on shared storage with tools/gather_checkpoint.py"
            )
        return Path(gathered) if gathered else None

    def _prepare(self, path: Path) -> EvaluationNetwork:
        """Return the network, which is built on the first call."""
        from ascend_cpt.backend.evaluation_network import EvaluationNetwork

        if self._plan is None:
            self._plan = make_plan(path, self.settings, world_size=self._process.world_size)
            for line in describe_tasks(self._plan.tasks, self._plan.row_format.seq_length):
                self.print(line)
        plan = self._plan
        if self._network is None:
            self._network = EvaluationNetwork(
                plan.model,
                row_format=plan.row_format,
                layout=plan.layout,
                device=plan.device,
                rank=self._process.rank,
                context=plan.context,
            )
        return self._network

    def _evaluate(self, path: Path, step: int) -> list[Judged]:
        from ascend_cpt.backend.training.validation import Evaluator

        network, plan = self._network, self._plan
        assert network is not None and plan is not None
        start_s = time.monotonic()
        records = Evaluator(network.scorer, plan.sets, plan.tasks, max_rows=plan.max_rows).evaluate(step)
        self.print(f"{path}: evaluated in {time.monotonic() - start_s:.1f} s")
        return records

    def _make_alarm(self, run_dir: Path) -> ForgettingAlarm:
        """Return the configured alarm after replaying the records of earlier validations."""
        assert self._plan is not None
        alarm = make_alarm(
            self.settings.sets,
            self.settings.tasks,
            metrics={task.name: task.metric for task in self._plan.tasks},
            tokens_per_step=self._count_tokens_per_step(run_dir),
        )
        records = read_metrics(run_dir / METRICS_NAME)
        alarm.restore(record for record in records if record["kind"] in JUDGED_KINDS)
        return alarm

    def _count_tokens_per_step(self, run_dir: Path) -> int:
        state = locate_checkpoint(run_dir).state
        return max(1, state.tokens // max(1, state.step))

    def _print_records(self, records: Sequence[Judged]) -> None:
        for record in records:
            self.print(format_validation(record) if isinstance(record, ValidationRecord) else format_task(record))

    def print(self, line: str) -> None:
        """Print a line on the terminal, in the first process only."""
        if self.is_first:
            print(line, file=self._console, flush=True)


def _identify(parts: Sequence[Path]) -> str:
    """Return what distinguishes a checkpoint from others of the same step, or "" if a part was deleted."""
    try:
        return identify(parts)
    except OSError:
        return ""


def _are_damaged(parts: Sequence[Path]) -> bool:
    """Return whether a checkpoint or any of its parts is gone or lacks a file.

    Raises:
        CheckpointError: when only one node's part is given.
    """
    if (parts[0] / CONFIG_NAME).is_file():
        return False
    try:
        checkpoints = [check_checkpoint(part) for part in parts]
    except CheckpointError:
        return True
    check_parts(checkpoints)
    return False
