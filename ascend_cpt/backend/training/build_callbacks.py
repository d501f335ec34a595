"""Builds a run's callbacks: sinks, guards, alarms, validation and saving."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TextIO

import mindspore as ms
from mindspore import nn
from mindspore.train import Callback

from ascend_cpt import __version__
from ascend_cpt.backend.checkpointing.writer import CheckpointWriter, KeepBest
from ascend_cpt.backend.models.experts.monitor import LOADS_NAME, ExpertMonitor
from ascend_cpt.backend.training.ranks.rank_exchange import RankExchange
from ascend_cpt.backend.training.row_scorer import RowScorer
from ascend_cpt.backend.training.run_controller import RunController
from ascend_cpt.backend.training.spike_guards import StepGuard, install_guards
from ascend_cpt.backend.training.step_monitor import HostOutputs, Speed, StepMonitor, run_first
from ascend_cpt.backend.training.validation import Evaluator
from ascend_cpt.checkpoint.fingerprint import LAYOUT_SIZES
from ascend_cpt.checkpoint.state import RunState
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.config.values import to_steps
from ascend_cpt.data.packed.packing import CONCAT
from ascend_cpt.devices import find_peak_flops
from ascend_cpt.errors import CheckpointError
from ascend_cpt.files import write_text
from ascend_cpt.model.flops import count_training_flops_per_token
from ascend_cpt.model.parameters import count_parameters
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.monitor.accounting import DataAccount, PhaseSpan
from ascend_cpt.monitor.forgetting import ForgettingAlarm, make_alarm
from ascend_cpt.monitor.goodput.nodes import NodesRecord
from ascend_cpt.monitor.goodput.slow_ranks import SlowRankDetector
from ascend_cpt.monitor.goodput.timeline import NO_TIMELINE, Timeline
from ascend_cpt.monitor.guard import StepJudge
from ascend_cpt.monitor.history import (
    METRICS_NAME,
    RUN_INFO_NAME,
    extend_layouts,
    read_history,
    read_run_info,
    read_values,
)
from ascend_cpt.monitor.record import RunInfo
from ascend_cpt.monitor.report.write_report import ReportSink
from ascend_cpt.monitor.sinks import ConsoleSink, JsonlSink, Sink, SinkGroup
from ascend_cpt.monitor.trackers import open_trackers
from ascend_cpt.recipe.phases import Phase
from ascend_cpt.run.checks.job import list_software
from ascend_cpt.run.evaluation.watching import STOP_NAME
from ascend_cpt.run.export.base_weights import describe_base
from ascend_cpt.run.launch.start_clock import StartClock
from ascend_cpt.run.resolved_run import Dataset, ResolvedRun
from ascend_cpt.tasks.load import Task


def build_callbacks(
    run: ResolvedRun,
    *,
    initial_step: int,
    stop_at_step: int | None,
    console: TextIO,
    rank: int,
    data_rank: int,
    is_first_on_node: bool,
    num_local_ranks: int = 1,
    tasks: Sequence[Task] = (),
    clock: StartClock | None = None,
    timeline: Timeline = NO_TIMELINE,
    extra_sinks: Sequence[Sink] = (),
    nodes: NodesRecord | None = None,
) -> list[Callback]:
    """Return a rank's callbacks; only the reporting rank has sinks. Call this before the network is built.

    Without shared storage, a node's first rank completes the node's checkpoints and writes the records for a resume.
    Every rank restores the same history, so that all make the same decisions.
    """
    cpt, budget, reports = run.config.cpt, run.budget, rank == run.report_rank
    install_guards(cpt.guards)
    phases = [PhaseSpan(name=one.name, first_step=one.first_step, stop_step=one.stop_step) for one in run.phases]
    judge = StepJudge(cpt.guards, first_steps=[phase.first_step for phase in phases])
    history = read_history(run.run_dir / METRICS_NAME, initial_step, judge.window_steps)
    judge.restore(history.steps, history.num_skipped)
    keeps_records = is_first_on_node and _keeps_records(run, rank, num_local_ranks)
    sinks = _choose_sinks(run, initial_step, console, extra_sinks, reports, keeps_records, nodes)
    if initial_step and (not history.steps or history.steps[-1]["step"] != initial_step):
        _check_missing_records(run, initial_step, sinks)
    monitor = StepMonitor(
        budget=budget,
        initial_step=initial_step,
        speed=_make_speed(run),
        phases=phases,
        guard=StepGuard(judge, run_dir=run.run_dir, list_rows=run.list_rows, reports=reports),
        account=_open_account(run, phases, history.account) if reports else None,
        sinks=sinks,
        gives_loss=reports if run.layout.pipeline_parallel > 1 else None,
        clock=clock,
        timeline=timeline,
        experts=_build_expert_monitor(run, reports),
    )
    controller = RunController(
        total_steps=budget.total_steps,
        initial_step=initial_step,
        writer=_build_writer(run, rank, is_first_on_node, num_local_ranks, SinkGroup([], console).warn),
        save_every_steps=to_steps(cpt.checkpoint.every, budget.tokens_per_step),
        saves=cpt.checkpoint.save,
        build_evaluator=partial(_build_evaluator, run, tasks, data_rank, reports) if cpt.validation else None,
        validate_every_steps=to_steps(cpt.validation.every if cpt.validation else None, budget.tokens_per_step),
        stop_at_step=stop_at_step,
        exchange=RankExchange(rank, run.layout.world_size),
        slow_ranks=SlowRankDetector(cpt.monitor.slow_rank_excess),
        reports_to_launcher=is_first_on_node,
        alarm=_build_alarm(run, tasks),
        recorded_validations=[*history.validations, *history.tasks],
        sinks=sinks,
        monitor=monitor,
        stop_file=run.run_dir / STOP_NAME,
        timeline=timeline,
        restart_steps=[phase.first_step for phase in run.phases[1:]] if run.order.restarts else (),
    )
    return [*_copy_outputs(run), monitor, controller]


def _keeps_records(run: ResolvedRun, first_rank: int, num_local_ranks: int) -> bool:
    """Return whether a node's first rank writes records that the reporting rank does not write there."""
    is_on_reporting_node = first_rank // num_local_ranks == run.report_rank // num_local_ranks
    return not (run.config.cpt.storage.shared or is_on_reporting_node)


def _choose_sinks(
    run: ResolvedRun,
    initial_step: int,
    console: TextIO,
    extra_sinks: Sequence[Sink],
    reports: bool,
    keeps_records: bool,
    nodes: NodesRecord | None,
) -> SinkGroup:
    """Return a rank's sinks. Without shared storage, a node that does not report keeps records to resume on its own."""
    if reports:
        return _open_sinks(run, initial_step, console, extra_sinks, nodes)
    return SinkGroup([JsonlSink(run.run_dir / METRICS_NAME, initial_step)] if keeps_records else [], None)


def _make_speed(run: ResolvedRun) -> Speed:
    return Speed(
        num_devices=run.layout.world_size,
        flops_per_token=count_training_flops_per_token(read_sizes(run.model), run.budget.seq_length, run.frozen),
        peak_flops=find_peak_flops(_get_device_name(run)),
    )


def _build_expert_monitor(run: ResolvedRun, reports: bool) -> ExpertMonitor | None:
    sizes = read_sizes(run.model)
    if sizes.experts is None:
        return None
    return ExpertMonitor(
        sizes,
        budget=run.budget,
        num_ranks=run.layout.world_size,
        num_stages=run.layout.pipeline_parallel,
        every_steps=run.config.cpt.monitor.expert_every_steps,
        max_load=run.config.cpt.guards.max_expert_load,
        loads_path=run.run_dir / LOADS_NAME if reports else None,
    )


def _build_alarm(run: ResolvedRun, tasks: Sequence[Task]) -> ForgettingAlarm:
    validation = run.config.cpt.validation
    if validation is None:
        return ForgettingAlarm()
    metrics = {task.name: task.metric for task in tasks}
    return make_alarm(
        validation.sets,
        {name: validation.tasks[name] for name in metrics},
        metrics=metrics,
        tokens_per_step=run.budget.tokens_per_step,
    )


def describe_run(run: ResolvedRun, nodes: NodesRecord | None = None) -> RunInfo:
    """Return the facts that a report needs in addition to the records."""
    model, sizes, budget = run.model, read_sizes(run.model), run.budget
    device_name = _get_device_name(run)
    return RunInfo(
        name=run.run_dir.name,
        model=f"{model['model_type']}, {model['num_hidden_layers']} layers, hidden {model['hidden_size']}",
        num_parameters=count_parameters(sizes),
        num_devices=run.layout.world_size,
        device_name=device_name,
        flops_per_token=count_training_flops_per_token(sizes, budget.seq_length, run.frozen),
        peak_flops=find_peak_flops(device_name),
        total_steps=budget.total_steps,
        tokens_per_step=budget.total_tokens // budget.total_steps,
        phases=[
            {
                "name": phase.name,
                "first_step": phase.first_step,
                "stop_step": phase.stop_step,
                "tokens": _plan_tokens(run, phase),
            }
            for phase in run.phases
        ],
        sources={source.name: _describe_source(source, budget.seq_length) for source in run.sources},
        validation={dataset.name: _describe_set(run, dataset) for dataset in run.validation},
        tasks={
            name: {"max_drop": task.max_drop, "on_drop": task.on_drop}
            for name, task in (run.config.cpt.validation.tasks if run.config.cpt.validation else {}).items()
        },
        nodes=nodes.hosts if nodes else [],
        loss_chunks=run.config.cpt.loss_chunks,
        trackers={"sinks": list(run.config.cpt.monitor.sinks), "project": run.config.cpt.monitor.project},
    )


def _describe_source(source: Dataset, seq_length: int) -> dict[str, Any]:
    size = {"rows": source.num_rows, "tokens": source.num_rows * seq_length}
    if source.manifest.packing == CONCAT:
        return size
    return size | {"packing": source.manifest.packing, "padding_share": source.manifest.padding_share}


def _plan_tokens(run: ResolvedRun, phase: Phase) -> dict[str, int]:
    """Return the tokens from each source in a phase, or expected values if all rows are shuffled together."""
    length = run.budget.seq_length
    if phase.shares is not None:
        rows = run.count_source_rows(phase.first_step, phase.stop_step)
        return {source: rows[source] * length for source in phase.shares}
    # Exact numbers would require visiting every row of the phase.
    total_rows = sum(source.num_rows for source in run.sources)
    num_rows = run.budget.count_rows(phase.stop_step) - run.budget.count_rows(phase.first_step)
    return {source.name: round(num_rows * source.num_rows / total_rows) * length for source in run.sources}


def _get_device_name(run: ResolvedRun) -> str:
    return "CPU" if uses_cpu(run.config) else str(ms.hal.get_device_name(0, "Ascend"))


def _check_missing_records(run: ResolvedRun, initial_step: int, sinks: SinkGroup) -> None:
    """Warn that guards and alarms restart without history, or fail if ranks could then decide differently.

    Raises:
        CheckpointError: when all ranks must reach the same decision but this one lacks the records.
    """
    cpt, path = run.config.cpt, run.run_dir / METRICS_NAME
    validation = cpt.validation
    stops = validation is not None and (
        any(entry.on_increase == "stop" for entry in validation.sets.values())
        or any(task.on_drop == "stop" for task in validation.tasks.values())
    )
    decides = bool(cpt.guards.loss_spike or cpt.guards.grad_norm_spike or stops)
    if decides and run.layout.world_size > 1:
        raise CheckpointError(
            f"{path}: has no records up to step {initial_step}, which cpt.guards, on_increase and on_drop need on "
            "every rank; copy the file from another node, or remove these settings"
        )
    sinks.warn(f"{path}: has no records up to step {initial_step}; guards and alarms restart without history")


def _describe_set(run: ResolvedRun, dataset: Dataset) -> dict[str, Any]:
    validation = run.config.cpt.validation
    assert validation is not None
    limits = validation.sets[dataset.name]
    return {
        "rows": min(dataset.num_rows, validation.max_rows or dataset.num_rows),
        "of_rows": dataset.num_rows,
        "max_increase": limits.max_increase,
        "on_increase": limits.on_increase,
        "patience": str(limits.patience) if limits.patience else None,
    }


def _find_base(run: ResolvedRun, initial_step: int) -> dict[str, Any] | None:
    """Return the run's base weights. A resumed run keeps its record, since its configuration may have changed."""
    if initial_step:
        recorded: dict[str, Any] | None = read_run_info(run.run_dir).get("base")
        return recorded
    weights = run.config.initial_weights
    return describe_base(weights) if weights else None


def _list_layouts(run: ResolvedRun, initial_step: int) -> list[dict[str, int]]:
    recorded = read_run_info(run.run_dir).get("layouts", []) if initial_step else []
    layout = run.describe_layout()
    return extend_layouts(recorded, initial_step, {name: layout[name] for name in LAYOUT_SIZES})


def _open_sinks(
    run: ResolvedRun, initial_step: int, console: TextIO, extra_sinks: Sequence[Sink], nodes: NodesRecord | None
) -> SinkGroup:
    settings = run.config.cpt.monitor
    info = dataclasses.replace(
        describe_run(run, nodes),
        base=_find_base(run, initial_step),
        software={"ascend_cpt": __version__, **list_software()},
        layouts=_list_layouts(run, initial_step),
    ).to_values()
    write_text(run.run_dir / RUN_INFO_NAME, json.dumps(info, indent=1) + "\n")
    always: list[Sink] = [
        ConsoleSink(console, settings.print_every_steps),
        JsonlSink(run.run_dir / METRICS_NAME, initial_step),
    ]
    warn = SinkGroup([], console).warn
    trackers = open_trackers(
        settings.sinks,
        run.run_dir,
        resume_step=initial_step,
        project=settings.project,
        config=info,
        warn=warn,
    )
    sinks = SinkGroup([*always, *trackers, *extra_sinks, ReportSink(run.run_dir, warn)], console)
    if nodes is not None:
        sinks.write(nodes)
    return sinks


def _open_account(run: ResolvedRun, phases: list[PhaseSpan], recorded: Mapping[str, Any] | None) -> DataAccount:
    account = DataAccount(
        run.count_source_rows,
        phases,
        rows_per_epoch={source.name: source.num_rows for source in run.sources},
        seq_length=run.budget.seq_length,
    )
    if recorded is not None:
        account.restore(recorded)
    return account


def _build_keep_best(run: ResolvedRun) -> KeepBest | None:
    """Return the `cpt.checkpoint.keep_best` rule. Every rank that completes checkpoints sees metrics.jsonl."""
    best = run.config.cpt.checkpoint.keep_best
    if best is None:
        return None
    kind, name = ("validation", best.set) if best.set is not None else ("task", best.task)
    assert name is not None
    return KeepBest(num_best=best.n, read_values=partial(read_values, run.run_dir / METRICS_NAME, kind, name))


def _copy_outputs(run: ResolvedRun) -> list[Callback]:
    """Return the callback that copies the outputs of a step from the device, if they are on one."""
    if uses_cpu(run.config):
        return []
    run_first(HostOutputs)
    return [HostOutputs()]


def _build_writer(
    run: ResolvedRun, rank: int, is_first_on_node: bool, num_local_ranks: int, warn: Callable[[str], None]
) -> CheckpointWriter:
    budget, checkpoint, shared = run.budget, run.config.cpt.checkpoint, run.config.cpt.storage.shared
    return CheckpointWriter(
        run.checkpoint_root,
        initial_state=RunState(
            step=0,
            total_steps=budget.total_steps,
            tokens=0,
            position=0,
            fingerprint=run.fingerprint(),
            layout=run.describe_layout(),
            base=run.base.to_record() if run.base else {},
        ),
        saved_weights=run.saved_weights,
        budget=budget,
        keep_last=checkpoint.keep_last,
        keep_every_steps=to_steps(checkpoint.keep_every, budget.tokens_per_step),
        keep_best=_build_keep_best(run),
        shared=shared,
        completes=rank == 0 if shared else is_first_on_node,
        rank=rank,
        num_ranks=run.layout.world_size,
        background=checkpoint.background,
        num_local_ranks=num_local_ranks,
        warn=warn if is_first_on_node else None,
    )


def _build_evaluator(
    run: ResolvedRun, tasks: Sequence[Task], data_rank: int, gives_loss: bool, network: nn.Cell
) -> Evaluator:
    assert run.config.cpt.validation is not None
    scorer = RowScorer(
        network,
        row_format=run.row_format,
        layout=run.layout,
        num_micro_batches=run.budget.num_accumulation_steps,
        data_rank=data_rank,
        gives_loss=gives_loss,
    )
    return Evaluator(scorer, run.validation, tasks, max_rows=run.config.cpt.validation.max_rows)
