"""The training command: parse → load → resolve → compile → train."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ascend_cpt.backend.training.msrun_scheduler import is_scheduler, serve_workers
from ascend_cpt.backend.training.trainer import Launch, train
from ascend_cpt.checkpoint.full_disk import report_full_disk
from ascend_cpt.checkpoint.locate import RESOLVED_NAME
from ascend_cpt.checkpoint.lock import hold_run_folder
from ascend_cpt.cluster.job.channel import join_job
from ascend_cpt.cluster.job.launcher_files import report_own_stop
from ascend_cpt.config.loader import RunConfig, parse_assignments
from ascend_cpt.errors import ConfigError, CptError
from ascend_cpt.files import write_text
from ascend_cpt.monitor.console import captured_output
from ascend_cpt.monitor.picture import draw_losses, draw_needles
from ascend_cpt.run.checks.job import check_job
from ascend_cpt.run.evaluation.needles import open_haystacks
from ascend_cpt.run.evaluation.tasks import describe_tasks, load_run_tasks
from ascend_cpt.run.export.at_end import export_at_end
from ascend_cpt.run.export.target import check_target
from ascend_cpt.run.mindformers_yaml import make_mindformers_config, render_yaml
from ascend_cpt.run.picture import draw_plan
from ascend_cpt.run.resolve import load_run
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.run.starting_point import Start, choose_start
from ascend_cpt.run.summary import describe, describe_end, describe_start


@dataclass(frozen=True, kw_only=True)
class Process:
    """The rank and world size of this process, from msrun's environment variables."""

    rank: int
    world_size: int
    launched: bool


def main(argv: list[str] | None = None) -> int:
    """Train, or with --dry-run print what would be trained. Returns the exit code."""
    args = parse_arguments(argv)
    if is_scheduler():
        serve_workers()
        return 0
    process = read_process(args.world_size if args.dry_run else None)
    if args.dry_run:
        run = load_run_of_arguments(args, process)
        start = choose_start(run, args.resume_training, extend=args.extend)
        print(f"{describe(run)}\n{describe_start(start)}")
        save_plan_picture(run)
        return 0
    with join_job(process.rank, process.world_size) as channel:
        run = load_run_of_arguments(args, process)
        make_run_folder(run.run_dir)
        validation = run.config.cpt.validation
        check_job(run, channel, open_haystacks(validation.tasks if validation else {}))
        # One process per run folder holds the lock, so that a second launch fails.
        holds = channel.rank == 0 if run.config.cpt.storage.shared else channel.is_first_on_node
        lock = hold_run_folder(run.run_dir) if holds else nullcontext()
        with report_full_disk(run.run_dir, "writing to the run folder"), lock:
            start = choose_start(run, args.resume_training, extend=args.extend, channel=channel)
            # Training does not use the channel, so its port need not stay open.
            channel.close()
            return train_run(run, start, args, process, is_first_on_node=channel.is_first_on_node)


def load_run_of_arguments(args: argparse.Namespace, process: Process) -> ResolvedRun:
    """Return the run of the command line and its configuration.

    Raises:
        CptError: when they are invalid.
    """
    run = load_run(
        args.config,
        collect_overrides(args),
        world_size=process.world_size,
        replace=("cpt.sources",) if args.train_dataset_dir else (),
        check_config=lambda config: check_launch(config, args, process),
    )
    check_target(run)
    return run


def train_run(
    run: ResolvedRun, start: Start, args: argparse.Namespace, process: Process, *, is_first_on_node: bool
) -> int:
    """Compile and train. Returns the exit code."""
    for line in start.warnings if process.rank == 0 else ():
        print(f"warning: skipped an unusable checkpoint: {line}", file=sys.stderr)
    if start.step >= run.budget.total_steps:
        if process.rank == 0:
            rest = "" if run.config.cpt.export else "; nothing to do"
            print(f"{run.run_dir}: already complete at step {start.step}{rest}", flush=True)
        if process.rank == run.report_rank:
            export_run(run, sys.stdout)
        return 0
    if args.stop_at_step is not None and args.stop_at_step <= start.step:
        raise ConfigError(
            f"--stop-at-step {args.stop_at_step}: the run is already at step {start.step}; give a later "
            "step, or drop the flag to train to the end"
        )
    tasks = load_run_tasks(run)
    sections = make_mindformers_config(run, resume_from=start.resume_from, init_from=start.init_from)
    heading = f"Compiled by ascend_cpt from {run.config.path}; training uses this file"
    # Every rank writes the same text atomically, so no rank has to wait for another.
    write_text(run.run_dir / RESOLVED_NAME, render_yaml(sections, heading))
    log_path = run.run_dir / "logs" / f"rank_{process.rank}.log"
    try:
        with captured_output(log_path) as console:
            if process.rank == 0:
                lines = [describe(run), *describe_tasks(tasks, run.budget.seq_length), describe_start(start)]
                print("\n".join(lines), file=console, flush=True)
            launch = Launch(
                resolved_yaml=run.run_dir / RESOLVED_NAME,
                initial_step=start.step,
                stop_at_step=args.stop_at_step,
                console=console,
                is_first_on_node=is_first_on_node,
                tasks=tasks,
            )
            train(run, launch)
            if process.rank == run.report_rank:
                draw_losses(run.run_dir / "metrics.jsonl", run.run_dir / "loss.png", title=run.run_dir.name)
                draw_needles(run.run_dir / "metrics.jsonl", run.run_dir)
                print(describe_end(run, args.stop_at_step), file=console)
                if args.stop_at_step is None or args.stop_at_step >= run.budget.total_steps:
                    export_run(run, console)
    except CptError:
        raise
    except Exception:
        print(f"rank {process.rank} failed; the output of MindFormers and MindSpore is in {log_path}", file=sys.stderr)
        raise
    return 0


def export_run(run: ResolvedRun, console: TextIO) -> None:
    """Export as configured in `cpt.export`; called by one process, after the last step.

    Raises:
        ExportError: when the export failed. The launcher does not restart the job, because the run is complete.
    """
    try:
        export_at_end(run, lambda line: print(line, file=console, flush=True))
    except Exception:
        report_own_stop()
        raise


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="run_cpt.py",
        description="Continue the pretraining of a model on Ascend NPUs or, for small models, on CPUs.",
        epilog='Example: bash scripts/msrun_launcher.sh "run_cpt.py --config configs/qwen3/cpt_qwen3_tiny.yaml" 2',
    )
    parser.add_argument("--config", required=True, metavar="YAML", help="configuration file")
    parser.add_argument(
        "--train_dataset_dir",
        "--train_dataset",
        metavar="PATH",
        help="packed dataset to train on (replaces cpt.sources)",
    )
    parser.add_argument("--load_checkpoint", metavar="PATH", help="start from these weights (like cpt.init_from)")
    parser.add_argument("--output_dir", metavar="PATH", help="parent of the run folders (default: the configuration's)")
    parser.add_argument(
        "--use_parallel", type=parse_bool, metavar="BOOL", help="several workers (default: as launched)"
    )
    parser.add_argument(
        "--run_mode", choices=["train", "finetune", "predict"], default="train", help="finetune is the same as train"
    )
    parser.add_argument(
        "--resume_training",
        metavar="auto|PATH|never",
        help="continue from the newest complete checkpoint (auto or True, the default), from PATH, or never (False)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override any key, such as cpt.train_tokens=1B"
    )
    parser.add_argument(
        "--stop-at-step", type=int, metavar="N", help="save and stop after step N; run again to continue"
    )
    parser.add_argument(
        "--no-shared-storage",
        action="store_true",
        help="every node has its own copy of the data and its own output (like cpt.storage.shared: false)",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="continue a run that was extended with more tokens or phases",
    )
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="start without comparing checkpoint and data with their checksums (like cpt.checkpoint.verify: false and "
        "cpt.storage.verify_data: false)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan and stop")
    parser.add_argument("--world-size", type=int, metavar="N", help="with --dry-run: plan for N devices")
    return parser.parse_args(argv)


def parse_bool(text: str) -> bool:
    """Parse a boolean: true, yes, 1, false, no or 0.

    Raises:
        argparse.ArgumentTypeError: for any other text.
    """
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return words[text.lower()]


def read_process(world_size: int | None = None) -> Process:
    """Return the process of msrun's environment variables, or a single process without them."""
    size = os.environ.get("RANK_SIZE") or os.environ.get("MS_WORKER_NUM")
    launched = bool(size) and bool(os.environ.get("MS_SCHED_HOST"))
    rank = int(os.environ.get("RANK_ID", "0")) if launched else 0
    return Process(rank=rank, world_size=world_size or (int(size or 1) if launched else 1), launched=launched)


def collect_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Return dotted key → value for everything set on the command line."""
    overrides = parse_assignments(args.set)
    if args.train_dataset_dir:
        overrides["cpt.sources"] = {"train": {"path": args.train_dataset_dir}}
    if args.no_shared_storage:
        overrides["cpt.storage.shared"] = False
    if args.no_verify:
        overrides.update({"cpt.checkpoint.verify": False, "cpt.storage.verify_data": False})
    if args.output_dir:
        overrides["output_dir"] = args.output_dir
    if args.load_checkpoint:
        overrides["load_checkpoint"] = args.load_checkpoint
    return overrides


def check_launch(config: RunConfig, args: argparse.Namespace, process: Process) -> None:
    """Check that command line, configuration and launch are consistent.

    Raises:
        ConfigError: when they contradict each other.
    """
    if args.run_mode == "predict":
        raise ConfigError(
            "--run_mode predict: this program trains; export the checkpoint with tools/convert_weights.py to-hf"
        )
    if args.world_size is not None and (args.world_size < 1 or not args.dry_run):
        raise ConfigError(f"--world-size {args.world_size}: needs --dry-run and must be at least 1")
    use_parallel = args.use_parallel if args.use_parallel is not None else config.mindformers.get("use_parallel")
    if args.use_parallel and not process.launched:
        raise ConfigError("--use_parallel True needs several workers: start with bash scripts/msrun_launcher.sh")
    if use_parallel is False and process.world_size > 1:
        raise ConfigError(
            f"use_parallel is False, but the launch has {process.world_size} workers; remove use_parallel or "
            "launch one worker"
        )
    if not config.cpt.sources:
        raise ConfigError(f"{config.path}: cpt.sources is empty; add a dataset or give --train_dataset_dir")
    if config.cpt.init_from and config.mindformers.get("load_checkpoint"):
        raise ConfigError(
            f"cpt.init_from ({config.locate('cpt', 'init_from')}) and load_checkpoint "
            f"({config.locate('load_checkpoint')}) are both set; keep one, or replace the first "
            "with --set cpt.init_from=PATH"
        )
    if args.stop_at_step is not None and args.stop_at_step < 1:
        raise ConfigError(f"--stop-at-step {args.stop_at_step}: must be at least 1")


def save_plan_picture(run: ResolvedRun) -> None:
    """Draw the plan into the run folder and print its path. A dry run may lack permission to write there."""
    path = run.run_dir / "plan.png"
    try:
        make_run_folder(run.run_dir)
        draw_plan(run, path)
        print(f"plot     {path}")
    except (OSError, ConfigError) as error:
        print(f"plot     not written: {error}")


def make_run_folder(run_dir: Path) -> None:
    """Create the run folder.

    Raises:
        ConfigError: when it cannot be created or written to.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(run_dir, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(f"{run_dir}: cannot be written ({error.strerror}); choose another --output_dir") from None
