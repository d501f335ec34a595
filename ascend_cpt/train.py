"""The training command: parse → load → resolve → compile → train."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ascend_cpt.backend.training.msrun_scheduler import is_scheduler, serve_workers
from ascend_cpt.backend.training.trainer import Launch, train
from ascend_cpt.checkpoint.full_disk import report_full_disk
from ascend_cpt.checkpoint.locate import RESOLVED_NAME
from ascend_cpt.checkpoint.lock import hold_run_folder
from ascend_cpt.cluster.job.channel import JobChannel, join_job
from ascend_cpt.cluster.job.launcher_files import (
    INTERRUPTION_CAUSE,
    report_own_stop,
    report_ready,
    report_stacks_on_request,
    request_continuation,
    wait_until_ready,
)
from ascend_cpt.cluster.job.webhook import NO_WEBHOOK, open_webhook
from ascend_cpt.config.loader import RunConfig, load_config
from ascend_cpt.errors import ConfigError, CptError
from ascend_cpt.files import write_text
from ascend_cpt.monitor.console import captured_output
from ascend_cpt.monitor.goodput.account import compute_goodput
from ascend_cpt.monitor.goodput.timeline import ENDING, Timeline, read_timeline
from ascend_cpt.monitor.goodput.timeline import FILE_NAME as TIMELINE_NAME
from ascend_cpt.monitor.picture import draw_losses, draw_needles
from ascend_cpt.run.checks.environment import set_environment
from ascend_cpt.run.checks.job import check_job
from ascend_cpt.run.evaluation.needles import open_haystacks
from ascend_cpt.run.evaluation.tasks import describe_tasks, load_run_tasks
from ascend_cpt.run.export.at_end import export_at_end
from ascend_cpt.run.launch.command_line import (
    Process,
    check_ramp,
    collect_overrides,
    list_replaced,
    load_config_of_arguments,
    load_dry_run_of_arguments,
    load_run_of_arguments,
    parse_arguments,
    read_process,
)
from ascend_cpt.run.launch.compile_cache import find_cache_folder, prepare_cache
from ascend_cpt.run.launch.lost_nodes import describe_nodes, record_nodes
from ascend_cpt.run.launch.notices import notifying_end
from ascend_cpt.run.launch.start_clock import StartClock
from ascend_cpt.run.mindformers_yaml import make_mindformers_config, render_yaml
from ascend_cpt.run.picture import draw_plan
from ascend_cpt.run.raw_sources import find_raw_sources, list_packed, pack_raw_sources
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.run.starting_point import Start, choose_start
from ascend_cpt.run.summary import describe, describe_end, describe_start

CONTINUES = -1
"""Result of `train_run` when the run continues in a new process."""


def main(argv: list[str] | None = None) -> int:
    """Train, or with --dry-run print what would be trained. Return the exit code."""
    args = parse_arguments(argv)
    if is_scheduler():
        # Packing data or verifying its checksums must not count toward the rendezvous time limit.
        serve_workers(wait_until_ready)
        return 0
    clock = StartClock()
    started_s, joining_s = clock.last_s, time.time()
    process = read_process(args.world_size if args.dry_run else None)
    if args.assume and not args.dry_run:
        raise ConfigError("--assume: needs --dry-run; training reads the sizes of the datasets")
    if args.dry_run:
        show_plan(args, process)
        return 0
    with join_job(process.rank, process.world_size) as channel:
        clock.end("import")
        joined_s = time.time()
        packed = pack_raw_sources(load_config_of_arguments(args, process), channel, print_line)
        if args.pack_only:
            if process.rank == 0:
                report_ready(trains=False)
            return 0
        run = load_run_of_arguments(args, process, packed)
        set_environment(run.config.cpt.environment, os.environ)
        make_run_folder(run.run_dir)
        validation = run.config.cpt.validation
        check_job(run, channel, open_haystacks(validation.tasks if validation else {}))
        # One process per run folder holds a lock so that a second launch fails.
        holds = channel.rank == 0 if run.config.cpt.storage.shared else channel.is_first_on_node
        lock = hold_run_folder(run.run_dir) if holds else nullcontext()
        with report_full_disk(run.run_dir, "writing to the run folder"), lock:
            start = choose_start(run, args.resume_training, extend=args.extend, reshard=args.reshard, channel=channel)
            run = replace(run, base=start.base)
            stage = run.at_step(min(start.step, run.budget.total_steps - 1))
            sections = make_mindformers_config(stage, resume_from=start.resume_from, init_from=start.init_from)
            cache = choose_compile_cache(run, sections, channel)
            # Training does not use the channel, so its port need not stay open.
            channel.close()
            if process.rank == 0:
                report_ready(trains=start.step < run.budget.total_steps)
            clock.end("data")
            timeline = open_timeline(run, process, start, started_s)
            timeline.end("starting", at_s=joining_s)
            timeline.end("waiting", at_s=joined_s)
            launch = partial(
                Launch,
                clock=clock,
                timeline=timeline,
                webhook=open_webhook(os.environ, print_line) if process.rank == run.report_rank else NO_WEBHOOK,
                compile_cache=cache,
                is_first_on_node=channel.is_first_on_node,
                num_local_ranks=channel.num_local,
            )
            with ending(timeline):
                code = train_run(run, start, sections, args, process, launch)
    return continue_run(run, process) if code == CONTINUES else code


def show_plan(args: argparse.Namespace, process: Process) -> None:
    """Print what would be packed and, once everything is packed, what would be trained."""
    packed = describe_raw_sources(load_config(args.config, collect_overrides(args), list_replaced(args)))
    if packed is None:
        return
    run = load_dry_run_of_arguments(args, process, packed)
    start = choose_start(run, args.resume_training, extend=args.extend, reshard=args.reshard, dry=True)
    print(f"{describe(run)}\n{describe_start(start)}")
    save_plan_picture(run)


def open_timeline(run: ResolvedRun, process: Process, start: Start, started_s: float) -> Timeline:
    """Return the timeline of this launch, with the cause of the interruption before it. One process writes it."""
    return Timeline(
        run.run_dir / TIMELINE_NAME if process.rank == run.report_rank else None,
        started_s=started_s,
        from_step=start.step,
        cause=os.environ.get(INTERRUPTION_CAUSE, ""),
        skipped=start.warnings,
    )


@contextmanager
def ending(timeline: Timeline) -> Iterator[None]:
    """Record the end of the launch unless it fails. Guards, alarms and signals count as orderly ends."""
    try:
        yield
    except CptError as error:
        timeline.end(ENDING, error=str(error))
        raise
    else:
        timeline.end(ENDING)
    finally:
        timeline.flush()


def continue_run(run: ResolvedRun, process: Process) -> int:
    """Restart this program from the checkpoint where the batch changes, because a graph has a single batch size.

    Under the launcher, all processes of the job exit first, and the launcher restarts them.
    """
    sys.stdout.flush()
    if request_continuation():
        return 0
    if process.launched:
        print(f"{run.run_dir}: the batch size changes here; run the same command again to continue", flush=True)
        return 0
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def print_line(line: str) -> None:
    """Print a line and flush it so that the launcher shows it at once."""
    print(line, flush=True)


def describe_raw_sources(config: RunConfig) -> dict[str, str] | None:
    """Print what would be packed. Return the packed datasets' prefixes, or None if any is still unpacked."""
    sources = find_raw_sources(config)
    for source in sources:
        print(source.describe())
    prefixes = list_packed(sources)
    if prefixes is None:
        print("plan     needs the packed data; the same command without --dry-run packs it before training")
    return prefixes


def train_run(
    run: ResolvedRun,
    start: Start,
    sections: dict[str, Any],
    args: argparse.Namespace,
    process: Process,
    make_launch: Callable[..., Launch],
) -> int:
    """Compile and train. Return the exit code, or CONTINUES at the end of a batch-ramp stage."""
    check_ramp(run, args)
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
    run = run.at_step(start.step)
    stage_end = run.budget.find_stage_end(start.step)
    stop_at_step, continues = args.stop_at_step, False
    if stage_end < run.budget.total_steps and (stop_at_step is None or stage_end < stop_at_step):
        stop_at_step, continues = stage_end, True
    tasks = load_run_tasks(run)
    heading = f"Compiled by ascend_cpt from {run.config.path}; training uses this file"
    # Every rank writes the same text atomically, so no rank has to wait for another.
    write_text(run.run_dir / RESOLVED_NAME, render_yaml(sections, heading))
    log_path = run.run_dir / "logs" / f"rank_{process.rank}.log"
    try:
        report_stacks_on_request(process.rank)
        with captured_output(log_path) as console:
            if process.rank == 0:
                lines = [describe(run), *describe_tasks(tasks, run.budget.seq_length)]
                lines += [*describe_nodes(process.nodes), describe_start(start)]
                print("\n".join(lines), file=console, flush=True)
            launch = make_launch(
                resolved_yaml=run.run_dir / RESOLVED_NAME,
                initial_step=start.step,
                stop_at_step=stop_at_step,
                console=console,
                tasks=tasks,
                nodes=record_nodes(run, process.nodes, start.step),
            )
            with notifying_end(launch.webhook, run.run_dir.name):
                train(run, launch)
                if process.rank == run.report_rank:
                    finish_run(run, launch, continues=continues)
    except CptError:
        raise
    except Exception:
        print(f"rank {process.rank} failed; the output of MindFormers and MindSpore is in {log_path}", file=sys.stderr)
        raise
    return CONTINUES if continues else 0


def finish_run(run: ResolvedRun, launch: Launch, *, continues: bool) -> None:
    """Report the end of a launch, export a complete run's weights, and send a notice. Called by one process."""
    line = describe_end(run, launch.stop_at_step, continues=continues)
    report_end(run, line, launch.console)
    if launch.stop_at_step is None or launch.stop_at_step >= run.budget.total_steps:
        export_run(run, launch.console)
    if not continues:
        launch.webhook.send("end", run.run_dir.name, line)


def report_end(run: ResolvedRun, line: str, console: TextIO) -> None:
    """Draw the run's plots, and print its final line and goodput."""
    draw_losses(run.run_dir / "metrics.jsonl", run.run_dir / "loss.png", title=run.run_dir.name)
    draw_needles(run.run_dir / "metrics.jsonl", run.run_dir)
    print(line, file=console, flush=True)
    if goodput := compute_goodput(read_timeline(run.run_dir / TIMELINE_NAME)):
        print(f"time     {goodput.describe()}", file=console, flush=True)


def choose_compile_cache(run: ResolvedRun, sections: dict[str, Any], channel: JobChannel) -> Path | None:
    """Prepare the compiled-graph folder for all processes and return it, or None if the run has no cache."""
    if not run.config.cpt.compile_cache:
        return None
    folder = find_cache_folder(
        run.run_dir,
        sections,
        run.config.tree.data["cpt"],
        world_size=run.layout.world_size,
        environ=os.environ,
    )
    is_loaded = prepare_cache(folder, channel)
    if channel.rank == 0:
        print(f"compile  {'the graph is loaded from' if is_loaded else 'the graph is saved in'} {folder}", flush=True)
    return folder


def export_run(run: ResolvedRun, console: TextIO) -> None:
    """Export as configured in `cpt.export`. Called by one process after the last step.

    Raises:
        ExportError: when the export failed. The launcher does not restart the job, because the run is complete.
    """
    try:
        export_at_end(run, lambda line: print(line, file=console, flush=True))
    except Exception:
        report_own_stop()
        raise


def save_plan_picture(run: ResolvedRun) -> None:
    """Plot the plan in the run folder and print the plot's path. A dry run may lack permission to write there."""
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
        ConfigError: when the folder cannot be created or written to.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(run_dir, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(f"{run_dir}: cannot be written ({error.strerror}); choose another --output_dir") from None
