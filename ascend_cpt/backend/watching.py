"""Puts together what watches a run: sinks, guards, alarms, validation and saving, as callbacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, TextIO

import mindspore as ms
from mindspore import nn
from mindspore.train import Callback

from ascend_cpt.backend.callbacks import RunKeeper, Speed, StepMonitor
from ascend_cpt.backend.evaluate import Evaluator
from ascend_cpt.backend.guards import StepGuard, install_guards
from ascend_cpt.backend.save import CheckpointWriter
from ascend_cpt.checkpoint.state import RunState
from ascend_cpt.config.layout import uses_cpu
from ascend_cpt.config.values import to_steps
from ascend_cpt.devices import find_peak_flops
from ascend_cpt.errors import CheckpointError
from ascend_cpt.files import write_text
from ascend_cpt.model.flops import count_training_flops_per_token
from ascend_cpt.model.parameters import count_parameters
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.monitor.accounting import DataAccount, PhaseSpan
from ascend_cpt.monitor.forgetting import ForgettingAlarm
from ascend_cpt.monitor.guard import StepJudge
from ascend_cpt.monitor.history import read_history
from ascend_cpt.monitor.record import RunInfo
from ascend_cpt.monitor.report import ReportSink
from ascend_cpt.monitor.sinks import ConsoleSink, JsonlSink, Sink, SinkGroup
from ascend_cpt.monitor.trackers import open_trackers
from ascend_cpt.recipe.phases import Phase
from ascend_cpt.run.resolved_run import Dataset, RunPlan

METRICS_NAME = "metrics.jsonl"
RUN_INFO_NAME = "run.json"


def build_callbacks(
    plan: RunPlan,
    *,
    initial_step: int,
    stop_at_step: int | None,
    console: TextIO,
    rank: int,
    data_rank: int,
    is_first_on_node: bool,
) -> list[Callback]:
    """Return the callbacks of a rank; the rank that reports has sinks. Call it before the network is built.

    Without shared storage the first rank of every node completes the checkpoints there, and keeps the records that a
    continuation reads.
    """
    cpt, budget = plan.config.cpt, plan.budget
    reports = rank == plan.report_rank
    install_guards(cpt.guards)
    phases = [
        PhaseSpan(name=phase.name, first_step=phase.first_step, stop_step=phase.stop_step) for phase in plan.phases
    ]
    judge = StepJudge(cpt.guards, first_steps=[phase.first_step for phase in phases])
    # Every rank remembers the same: they must come to the same verdicts.
    history = read_history(plan.run_dir / METRICS_NAME, initial_step, judge.window_steps)
    judge.restore(history.steps, history.num_skipped)
    shared = cpt.storage.shared
    if reports:
        sinks = _open_sinks(plan, initial_step, console)
    else:
        keeps_records = is_first_on_node and not shared
        sinks = SinkGroup([JsonlSink(plan.run_dir / METRICS_NAME, initial_step)] if keeps_records else [], None)
    if initial_step and (not history.steps or history.steps[-1]["step"] != initial_step):
        _accept_lost_records(plan, initial_step, sinks)
    monitor = StepMonitor(
        budget=budget,
        initial_step=initial_step,
        speed=Speed(
            num_devices=plan.layout.world_size,
            flops_per_token=count_training_flops_per_token(read_sizes(plan.model), budget.seq_length),
            peak_flops=find_peak_flops(_get_device_name(plan)),
        ),
        phases=phases,
        guard=StepGuard(judge, run_dir=plan.run_dir, list_rows=plan.list_rows, reports=reports),
        account=_open_account(plan, phases, history.account) if reports else None,
        sinks=sinks,
    )
    validation = cpt.validation
    keeper = RunKeeper(
        total_steps=budget.total_steps,
        initial_step=initial_step,
        writer=_build_writer(plan, rank, completes=rank == 0 if shared else is_first_on_node),
        save_every_steps=to_steps(cpt.checkpoint.every, budget.tokens_per_step),
        build_evaluator=partial(_build_evaluator, plan, data_rank) if validation else None,
        validate_every_steps=to_steps(validation.every if validation else None, budget.tokens_per_step),
        stop_at_step=stop_at_step,
        num_ranks=plan.layout.world_size,
        tells_launcher=is_first_on_node,
        alarm=ForgettingAlarm(validation.sets if validation else {}),
        recorded_validations=history.validations,
        sinks=sinks,
        monitor=monitor,
    )
    return [monitor, keeper]


def describe_run(plan: RunPlan) -> RunInfo:
    """Return what a report must know of a run beside its records."""
    model, sizes, budget = plan.model, read_sizes(plan.model), plan.budget
    device_name = _get_device_name(plan)
    return RunInfo(
        name=plan.run_dir.name,
        model=f"{model['model_type']}, {model['num_hidden_layers']} layers, hidden {model['hidden_size']}",
        num_parameters=count_parameters(sizes),
        num_devices=plan.layout.world_size,
        device_name=device_name,
        flops_per_token=count_training_flops_per_token(sizes, budget.seq_length),
        peak_flops=find_peak_flops(device_name),
        total_steps=budget.total_steps,
        tokens_per_step=budget.tokens_per_step,
        phases=[
            {
                "name": phase.name,
                "first_step": phase.first_step,
                "stop_step": phase.stop_step,
                "tokens": _plan_tokens(plan, phase),
            }
            for phase in plan.phases
        ],
        sources={
            source.name: {"rows": source.num_rows, "tokens": source.num_rows * budget.seq_length}
            for source in plan.sources
        },
        validation={dataset.name: _describe_set(plan, dataset) for dataset in plan.validation},
    )


def _plan_tokens(plan: RunPlan, phase: Phase) -> dict[str, int]:
    """Return the tokens of each source in a phase; where all rows are shuffled together, what is to be expected."""
    batch, length = plan.budget.global_batch_size, plan.budget.seq_length
    if phase.shares is not None:
        rows = plan.count_source_rows(phase.first_step, phase.stop_step)
        return {source: rows[source] * length for source in phase.shares}
    # Exact numbers would need a look at every row of the phase.
    total_rows = sum(source.num_rows for source in plan.sources)
    return {
        source.name: round(phase.num_steps * batch * source.num_rows / total_rows) * length for source in plan.sources
    }


def _get_device_name(plan: RunPlan) -> str:
    return "CPU" if uses_cpu(plan.config) else str(ms.hal.get_device_name(0, "Ascend"))


def _accept_lost_records(plan: RunPlan, initial_step: int, sinks: SinkGroup) -> None:
    """Warn that guards and alarms start anew, unless ranks would then decide differently.

    Raises:
        CheckpointError: when several ranks must come to one decision and this one does not know what others may know.
    """
    cpt, path = plan.config.cpt, plan.run_dir / METRICS_NAME
    stops = [entry for entry in (cpt.validation.sets if cpt.validation else {}).values() if entry.on_increase == "stop"]
    decides = bool(cpt.guards.loss_spike or cpt.guards.grad_norm_spike or stops)
    if decides and plan.layout.world_size > 1:
        raise CheckpointError(
            f"{path}: has no records up to step {initial_step}, by which cpt.guards and on_increase decide the same on "
            "every rank; copy the file from another node, or leave these settings out"
        )
    sinks.warn(f"{path}: has no records up to step {initial_step}; guards and alarms start anew")


def _describe_set(plan: RunPlan, dataset: Dataset) -> dict[str, Any]:
    validation = plan.config.cpt.validation
    assert validation is not None
    limits = validation.sets[dataset.name]
    return {
        "rows": min(dataset.num_rows, validation.max_rows or dataset.num_rows),
        "of_rows": dataset.num_rows,
        "max_increase": limits.max_increase,
        "on_increase": limits.on_increase,
    }


def _open_sinks(plan: RunPlan, initial_step: int, console: TextIO) -> SinkGroup:
    settings = plan.config.cpt.monitor
    info = describe_run(plan).to_values()
    write_text(plan.run_dir / RUN_INFO_NAME, json.dumps(info, indent=1) + "\n")
    always: list[Sink] = [
        ConsoleSink(console, settings.print_every_steps),
        JsonlSink(plan.run_dir / METRICS_NAME, initial_step),
    ]
    trackers = open_trackers(
        settings.sinks,
        plan.run_dir,
        resume_step=initial_step,
        project=settings.project,
        config=info,
        warn=SinkGroup([], console).warn,
    )
    return SinkGroup([*always, *trackers, ReportSink(plan.run_dir)], console)


def _open_account(plan: RunPlan, phases: list[PhaseSpan], recorded: Mapping[str, Any] | None) -> DataAccount:
    account = DataAccount(
        plan.count_source_rows,
        phases,
        rows_per_epoch={source.name: source.num_rows for source in plan.sources},
        seq_length=plan.budget.seq_length,
    )
    if recorded is not None:
        account.restore(recorded)
    return account


def _build_writer(plan: RunPlan, rank: int, *, completes: bool) -> CheckpointWriter:
    budget, checkpoint = plan.budget, plan.config.cpt.checkpoint
    return CheckpointWriter(
        plan.checkpoint_root,
        initial_state=RunState(
            step=0, total_steps=budget.total_steps, tokens=0, position=0, fingerprint=plan.fingerprint()
        ),
        global_batch_size=budget.global_batch_size,
        keep_last=checkpoint.keep_last,
        keep_every_steps=to_steps(checkpoint.keep_every, budget.tokens_per_step),
        shared=plan.config.cpt.storage.shared,
        completes=completes,
        rank=rank,
        num_ranks=plan.layout.world_size,
        background=checkpoint.background,
    )


def _build_evaluator(plan: RunPlan, data_rank: int, network: nn.Cell) -> Evaluator:
    assert plan.config.cpt.validation is not None
    return Evaluator(
        network,
        plan.validation,
        row_format=plan.row_format,
        batch_size=plan.budget.micro_batch_size,
        rank=data_rank,
        num_ranks=plan.layout.data_parallel,
        max_rows=plan.config.cpt.validation.max_rows,
    )
