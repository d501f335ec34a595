"""Evaluates a run, a checkpoint or a Hugging Face folder, or follows a run; the program behind tools/evaluate.py."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ascend_cpt.backend.training.msrun_scheduler import is_scheduler, serve_workers
from ascend_cpt.checkpoint.locate import check_checkpoint, locate_checkpoint
from ascend_cpt.cluster.job.channel import JobChannel, join_job
from ascend_cpt.cluster.job.launcher_files import report_own_stop
from ascend_cpt.config.loader import RunConfig, load_config, parse_assignments
from ascend_cpt.config.monitoring_schema import ValidationSetConfig
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.data.packed.network_inputs import ACROSS, DOCUMENT_ATTENTION
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, TOKENIZER_TYPES
from ascend_cpt.errors import CheckpointError, ConfigError, CptError
from ascend_cpt.files import write_text
from ascend_cpt.model.sizes import CONFIG_NAME
from ascend_cpt.monitor.console import captured_output
from ascend_cpt.monitor.forgetting import AlarmVerdict, ForgettingAlarm, describe_stop, make_alarm
from ascend_cpt.monitor.history import JUDGED_KINDS, METRICS_NAME, read_metrics
from ascend_cpt.monitor.record import Judged, ValidationRecord, to_values
from ascend_cpt.monitor.sinks import format_task, format_validation
from ascend_cpt.run.checks.job import verify_data
from ascend_cpt.run.checks.monitoring import find_monitoring_problems
from ascend_cpt.run.evaluation.plan import EvaluationPlan, EvaluationSettings, make_plan, open_sets, read_settings
from ascend_cpt.run.evaluation.tasks import describe_tasks
from ascend_cpt.run.evaluation.watching import (
    append_records,
    hold_watch_lock,
    is_over,
    list_pending,
    request_stop,
)
from ascend_cpt.run.verified import Verifier
from ascend_cpt.tasks.check import find_task_problems
from ascend_cpt.train import Process, read_process

if TYPE_CHECKING:
    from ascend_cpt.backend.evaluation_network import EvaluationNetwork

POLL_S = 30.0
_ONE_DEVICE = ParallelLayout(world_size=1, data_parallel=1)  # the checks of alarms do not depend on the layout


def main(argv: list[str] | None = None) -> int:
    """Evaluate. Returns the exit code."""
    args = parse_arguments(argv)
    if is_scheduler():
        serve_workers()
        return 0
    process = read_process()
    config = load_config(args.config, parse_assignments(args.set)) if args.config else None
    if config is None and args.set:
        raise ConfigError("--set: changes a configuration; give --config")
    settings = collect_settings(args, config)
    if args.watch and not (args.model / "checkpoint").is_dir() and not (args.model / METRICS_NAME).is_file():
        raise CheckpointError(f"{args.model}: --watch needs the folder of a run, as soon as it has started")
    manifests = open_sets(settings)
    if config is not None and (problems := find_monitoring_problems(config, _ONE_DEVICE)):
        raise ConfigError("\n".join(problems))
    with join_job(process.rank, process.world_size) as channel, contextlib.ExitStack() as stack:
        if args.watch and process.rank == 0:
            stack.enter_context(hold_watch_lock(args.model))
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ascend_cpt_evaluate_")))
        os.environ.setdefault("LOG_MF_PATH", str(logs))
        console = stack.enter_context(captured_output(logs / "mindformers.log"))
        if not args.no_verify:
            verify_data(manifests.values() if channel.is_first_on_node else (), channel)
        work = _Work(args=args, settings=settings, process=process, channel=channel, console=console)
        try:
            return work.watch() if args.watch else work.run_once()
        except CptError:
            raise
        except Exception:
            print((logs / "mindformers.log").read_text(encoding="utf-8", errors="replace")[-4000:], file=console)
            raise


class _Work:
    """The evaluation of one process."""

    def __init__(
        self,
        *,
        args: argparse.Namespace,
        settings: EvaluationSettings,
        process: Process,
        channel: JobChannel,
        console: TextIO,
    ) -> None:
        self._args, self._settings = args, settings
        self._process, self._channel, self._console = process, channel, console
        # Whether the nodes share storage is not known here, so each verifies what it loads.
        self._verifier = Verifier(channel=channel, shared=False, weights_only=True, enabled=not args.no_verify)
        self._network: EvaluationNetwork | None = None
        self._plan: EvaluationPlan | None = None

    def run_once(self) -> int:
        """Evaluate the weights given, print the results and write them to --json."""
        path: Path = self._args.model
        step = 0
        if not (path / CONFIG_NAME).is_file():
            checkpoint, skipped = self._verifier.locate(path)
            path, step = checkpoint.folder, checkpoint.state.step
            for line in skipped:
                self._print(f"warning: skipped an unusable checkpoint: {line}")
            for line in self._verifier.note_unverified(checkpoint):
                self._print(f"warning: {line}")
        if not self._load(path):
            raise CheckpointError(f"{path}: was deleted while it was loaded; choose a newer checkpoint")
        records = self._evaluate(path, step)
        self._print_records(records)
        if self._args.json and self._process.rank == 0:
            write_text(self._args.json, json.dumps([to_values(record) for record in records], indent=1) + "\n")
        return 0

    def watch(self) -> int:
        """Evaluate every new complete checkpoint until the run is over. Returns 1 if an alarm asked the run to stop."""
        run_dir: Path = self._args.model
        names = [("validation", name) for name in self._settings.sets]
        names += [("task", name) for name in self._settings.tasks]
        alarm: ForgettingAlarm | None = None
        waiting = False
        given_up: set[int] = set()
        while True:
            over = is_over(run_dir)
            pending = [step for step in list_pending(run_dir, names) if step not in given_up]
            # A checkpoint may be complete on some nodes only: the first one that all processes see is evaluated.
            views = self._channel.all_gather("pending checkpoints", [pending, over])
            common = sorted(set.intersection(*(set(view[0]) for view in views)))
            if not common:
                if all(view[1] for view in views):
                    self._print(f"{run_dir}: the run is over, and all its checkpoints are evaluated")
                    return 0
                if not waiting:
                    self._print(f"{run_dir}: waiting for the next checkpoint")
                waiting = True
                time.sleep(self._args.poll)
                continue
            waiting = False
            step = common[0]
            folder = run_dir / "checkpoint" / f"iteration_{step:08d}"
            problem = self._verifier.find_damage(folder)
            if problem or not self._load(folder):
                self._print(f"{problem or f'{folder}: was deleted before it was evaluated'}; skipped")
                given_up.add(step)
                continue
            records = self._evaluate(folder, step)
            message = ""
            if self._process.rank == 0:
                alarm = alarm or self._make_alarm(run_dir)
                message = self._record(run_dir, [alarm.judge(record) for record in records])
            # The first process decides for all.
            message = self._channel.all_gather("verdict", message)[0]
            if message:
                if self._process.rank == 0 and not is_over(run_dir):
                    request_stop(run_dir, message)
                self._print(f"asked the run to stop: {message}")
                report_own_stop()
                return 1

    def _record(self, run_dir: Path, verdicts: Sequence[AlarmVerdict]) -> str:
        """Record and print the results; return the message if one of them stops the run."""
        append_records(run_dir, [verdict.record for verdict in verdicts])
        self._print_records([verdict.record for verdict in verdicts])
        for verdict in verdicts:
            if verdict.message:
                self._print(f"warning: {verdict.message}")
        stopping = [verdict for verdict in verdicts if verdict.stop]
        return describe_stop(stopping) if stopping else ""

    def _load(self, path: Path) -> bool:
        """Load the weights in all processes; return False if a file disappeared in one of them."""
        is_loaded = False
        try:
            network = self._prepare(path)
            start_s = time.monotonic()
            network.load(path)
            self._print(f"{path}: loaded in {time.monotonic() - start_s:.1f} s")
            is_loaded = True
        except Exception:
            if not _is_damaged(path):
                raise
        return all(self._channel.all_gather("weights", is_loaded))

    def _prepare(self, path: Path) -> EvaluationNetwork:
        """Return the network, built at the first call."""
        from ascend_cpt.backend.evaluation_network import EvaluationNetwork

        if self._plan is None:
            self._plan = make_plan(path, self._settings, world_size=self._process.world_size)
            for line in describe_tasks(self._plan.tasks, self._plan.row_format.seq_length):
                self._print(line)
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
        self._print(f"{path}: evaluated in {time.monotonic() - start_s:.1f} s")
        return records

    def _make_alarm(self, run_dir: Path) -> ForgettingAlarm:
        """Return the alarm of the configuration, after the records of earlier validations."""
        assert self._plan is not None
        alarm = make_alarm(
            self._settings.sets,
            self._settings.tasks,
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
            self._print(format_validation(record) if isinstance(record, ValidationRecord) else format_task(record))

    def _print(self, line: str) -> None:
        if self._process.rank == 0:
            print(line, file=self._console, flush=True)


def _is_damaged(path: Path) -> bool:
    """Return whether a checkpoint is gone, or lacks a file."""
    if (path / CONFIG_NAME).is_file():
        return False
    try:
        check_checkpoint(path)
    except CheckpointError:
        return True
    return False


def collect_settings(args: argparse.Namespace, config: RunConfig | None) -> EvaluationSettings:
    """Return the settings of the command line and the configuration.

    Raises:
        ConfigError: malformed --validation or --task.
    """
    sets: dict[str, ValidationSetConfig] = {}
    for text in args.validation:
        name, separator, path = text.partition("=")
        if not name or not separator or not path:
            raise ConfigError(f"--validation {text}: expected NAME=PATH, such as general=/data/valid/general")
        sets[name] = ValidationSetConfig(path=path)
    tasks: dict[str, TaskConfig] = {}
    for text in args.task:
        name, separator, rest = text.partition("=")
        kind, colon, path = rest.partition(":")
        if not name or not separator or not colon or not path:
            raise ConfigError(f"--task {text}: expected NAME=KIND:PATH, such as mmlu=multiple_choice:/data/mmlu.jsonl")
        tasks[name] = TaskConfig(path=path, kind=kind)
        if problems := find_task_problems(tasks[name]):
            raise ConfigError(f"--task {text}: {'; '.join(problems)}")
    settings = EvaluationSettings(
        sets=sets,
        tasks=tasks,
        tokenizer=args.tokenizer,
        tokenizer_type=args.tokenizer_type,
        max_rows=args.max_rows,
        seq_length=args.seq_length,
        document_attention=args.document_attention or ACROSS,
        device=args.device or "",
        dtype=args.dtype,
        batch_size=args.batch_size,
        tensor_parallel=args.tensor_parallel or 0,
        model=None,
        context={},
    )
    if config is not None:
        merged = read_settings(config, settings)
        attention = args.document_attention or merged.document_attention
        return dataclasses.replace(merged, document_attention=attention)
    return dataclasses.replace(settings, device=settings.device or "CPU")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="tools/evaluate.py",
        description="Evaluate held-out losses and tasks of a run, a checkpoint or a Hugging Face folder.",
        epilog="Example: python tools/evaluate.py output/my_run --config my.yaml --watch",
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="run folder, checkpoint folder (iteration_*), or Hugging Face folder")
    add("--config", metavar="YAML", help="configuration with cpt.validation, model and layout, as for training")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override any key of the configuration")
    add("--validation", action="append", default=[], metavar="NAME=PATH", help="a packed dataset; may be repeated")
    add("--task", action="append", default=[], metavar="NAME=KIND:PATH", help="a task file; may be repeated")
    add("--tokenizer", type=Path, metavar="PATH", help="tokenizer of the tasks [from the configuration or MODEL]")
    add("--tokenizer-type", choices=TOKENIZER_TYPES, default=HUGGING_FACE, help="[%(default)s]")
    add("--max-rows", type=int, metavar="N", help="rows per validation set, spread over it [all]")
    add("--seq-length", type=int, metavar="N", help="tokens per row [the configuration's, or that of the data]")
    add("--batch-size", type=int, default=1, metavar="N", help="rows per device and forward pass [%(default)s]")
    add("--tensor-parallel", type=int, metavar="N", help="devices that share the weights [the configuration's, or 1]")
    add("--document-attention", choices=DOCUMENT_ATTENTION, help="[the configuration's, or across]")
    add("--device", choices=("CPU", "Ascend"), help="[the configuration's, or CPU]")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of a Hugging Face folder without --config [%(default)s]",
    )
    add("--no-verify", action="store_true", help="do not compare checkpoint and data with their checksums")
    add("--json", type=Path, metavar="FILE", help="also write the results to this file")
    add(
        "--watch",
        action="store_true",
        help="evaluate each new checkpoint of the run MODEL and record the results there",
    )
    add(
        "--poll",
        type=float,
        default=POLL_S,
        metavar="S",
        help="seconds between checks for new ones [%(default)s]",
    )
    args = parser.parse_args(argv)
    for name in ("max_rows", "seq_length", "batch_size", "tensor_parallel"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if not args.poll > 0:
        raise ConfigError(f"--poll {args.poll:g}: must be above 0")
    if args.watch and args.json:
        raise ConfigError("--json: with --watch the results are in the run's metrics.jsonl; remove one of the two")
    return args
