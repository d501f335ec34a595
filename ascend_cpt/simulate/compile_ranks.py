"""Compiles ranks of a planned run and compares them with the plan. Used by `tools/plan.py`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.backend.simulated_rank.messages import ParameterOnRank
from ascend_cpt.config.loader import RunConfig, load_config
from ascend_cpt.errors import ConfigError
from ascend_cpt.model.lora import LORA_A, LORA_B
from ascend_cpt.plan.case import FLOAT32_BYTES, GIGABYTE, TrainingCase
from ascend_cpt.plan.layout import count_stage_parts
from ascend_cpt.plan.memory import ADAM_STATES, estimate_memory
from ascend_cpt.plan.speed.compile_time import CompileRecord
from ascend_cpt.run.planning.assumed_run import resolve_without_data
from ascend_cpt.run.planning.compile_records import add_compile_records, find_compile_records
from ascend_cpt.run.planning.training_case import build_case
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.simulate.compare_slices import count_elements, find_differences, select_model_parameters
from ascend_cpt.simulate.run_rank import RankResult, list_first_ranks, simulate_rank

# Twice the number of stages is enough to fill and drain the pipeline. More would only lengthen the graph.
MICRO_BATCHES_PER_STAGE = 2


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """A simulated rank's result, and its differences from the plan."""

    result: RankResult
    differences: tuple[str, ...]
    planned_peak_bytes: int


def simulate_run(
    run: ResolvedRun,
    overrides: dict[str, Any],
    *,
    ranks: Sequence[int] | None,
    layers_per_stage: int | None,
    num_steps: int,
    timeout_s: float,
    report: Callable[[str], None],
    all_micro_batches: bool = False,
    log_dir: Path | None = None,
) -> tuple[TrainingCase, list[RankReport]]:
    """Compile ranks of a run and compare them with the plan for the compiled configuration.

    Args:
        run: The resolved run.
        overrides: The overrides that the run was loaded with.
        ranks: Ranks to compile, or None for the first rank of every pipeline stage.
        layers_per_stage: Number of layers to keep on every stage, or None for all.
        num_steps: Steps to run on the simulated device.
        timeout_s: Time limit of each rank.
        report: Called with progress lines.
        all_micro_batches: Compile every micro batch of a step, instead of at most twice the number of stages.
        log_dir: Folder in which to keep the processes' output.

    Raises:
        ConfigError: for a rank outside the cluster.
        ClusterError: when this machine cannot simulate.
    """
    world_size = run.layout.world_size
    wrong = [rank for rank in ranks or () if not 0 <= rank < world_size]
    if wrong:
        raise ConfigError(f"--ranks {wrong[0]}: the cluster has ranks 0 to {world_size - 1}")
    max_micro_batches = None if all_micro_batches else MICRO_BATCHES_PER_STAGE * run.layout.pipeline_parallel
    short = load_shortened(run, overrides, layers_per_stage=layers_per_stage, micro_batches=max_micro_batches)
    short_run = resolve_without_data(short, world_size)
    case = build_case(short_run)
    planned = estimate_memory(case)
    reports = []
    for rank in ranks or list_first_ranks(run):
        result = simulate_rank(
            short_run,
            rank,
            num_steps=num_steps,
            timeout_s=timeout_s,
            report=lambda line, rank=rank: report(f"rank {rank}: {line}"),  # type: ignore[misc]
            log_dir=log_dir,
        )
        report(f"rank {rank}: {'failed' if result.error else 'done'} after {result.duration_s:.0f} s")
        differences = [] if result.error else find_differences(case, result)
        peak_bytes = planned[result.stage].peak_bytes
        reports.append(RankReport(result=result, differences=tuple(differences), planned_peak_bytes=peak_bytes))
    return case, reports


def record_compiles(case: TrainingCase, reports: Sequence[RankReport]) -> None:
    """Record how long the compiled ranks took, for the estimates of later plans."""
    records = [
        CompileRecord(
            num_layers=case.layers_per_stage[report.result.stage],
            num_micro_batches=case.num_micro_batches,
            cpu_s=report.result.compile_cpu_s,
        )
        for report in reports
        if not report.result.error
    ]
    if records:
        add_compile_records(find_compile_records(), records)


def render_reports(case: TrainingCase, reports: Sequence[RankReport], *, shows_peaks: bool, pool_bytes: int) -> str:
    """Return the reports as text."""
    return "\n\n".join(_render_report(case, report, shows_peaks, pool_bytes) for report in reports)


def count_kept_bytes(case: TrainingCase, parameter: ParameterOnRank) -> int:
    """Return the bytes of a parameter on its rank, with its optimizer states if it is trained."""
    weight = FLOAT32_BYTES if parameter.name.endswith((LORA_A, LORA_B)) else case.param_bytes
    states = 0 if parameter.name in case.frozen else ADAM_STATES * FLOAT32_BYTES
    return count_elements([parameter]) * (weight + states)


def _render_report(case: TrainingCase, report: RankReport, shows_peaks: bool, pool_bytes: int) -> str:
    result = report.result
    where = f"rank {result.rank} (pipeline stage {result.stage})"
    if result.error:
        return f"{where}: NOT compiled: {result.error}"
    own = select_model_parameters(result.parameters)
    stored = count_elements(own)
    largest = max(own, key=lambda parameter: count_elements([parameter]))
    kept_bytes = sum(count_kept_bytes(case, parameter) for parameter in own)
    lines = [
        f"{where}: compiled in {result.duration_s:.0f} s (CPU time of the compiler: {result.compile_cpu_s:.0f} s) with "
        f"{result.host_bytes / GIGABYTE:.1f} GB of host memory",
        f"  parameters  {len(own)} with {stored:,} elements on this rank; weights and optimizer "
        f"{kept_bytes / GIGABYTE:.2f} GB",
        f"  largest     {largest.name} {largest.shape}, after tensor parallel {largest.tensor_shape}, "
        f"stored {largest.stored_shape}",
    ]
    lines += [
        f"  exchange    {exchange.count} × {exchange.kind} between {exchange.group} ranks "
        f"{_name_ranks(exchange.ranks)}: {exchange.output_bytes / 2**20:,.1f} MB"
        for exchange in result.exchanges
    ]
    if shows_peaks:
        ratio = report.planned_peak_bytes / result.peak_bytes - 1
        lines.append(
            f"  peak        {result.peak_bytes / GIGABYTE:.2f} GB of {pool_bytes / GIGABYTE:.0f} GB in MindSpore, a "
            f"lower bound without kernel workspaces; planned {report.planned_peak_bytes / GIGABYTE:.2f} GB "
            f"({ratio:+.1%})"
        )
    verdict = "as planned" if not report.differences else f"{len(report.differences)} differ from the plan:"
    lines.append(f"  slices      {verdict}")
    lines += [f"    {difference}" for difference in report.differences]
    return "\n".join(lines)


def reports_to_records(reports: Sequence[RankReport]) -> list[dict[str, Any]]:
    """Return the reports as JSON values."""
    return [dataclasses.asdict(report) for report in reports]


def _name_ranks(ranks: tuple[int, ...]) -> str:
    steps = {second - first for first, second in itertools.pairwise(ranks)}
    if len(ranks) > 2 and len(steps) == 1:
        step = steps.pop()
        return f"{ranks[0]}-{ranks[-1]}" + (f" by {step}" if step > 1 else "")
    return ",".join(str(rank) for rank in ranks)


def load_shortened(
    run: ResolvedRun, overrides: Mapping[str, Any], *, layers_per_stage: int | None, micro_batches: int | None
) -> RunConfig:
    """Return a run's configuration with fewer layers and micro batches, but otherwise unchanged.

    Args:
        run: The resolved run.
        overrides: The overrides that the run was loaded with.
        layers_per_stage: Number of layers to keep on every pipeline stage, or None for all. Interleaved stages keep
            the next multiple of their parts.
        micro_batches: Maximum number of micro batches per step, or None for all.
    """
    config = run.config
    changed = dict(overrides)
    num_micro = run.budget.num_accumulation_steps
    if micro_batches is not None:
        num_micro = min(num_micro, micro_batches)
    changed["cpt.global_batch_size"] = run.budget.micro_batch_size * run.layout.data_parallel * num_micro
    changed["runner_config.batch_size"] = run.budget.micro_batch_size
    for section, key in (("runner_config", "gradient_accumulation_steps"), ("parallel_config", "micro_batch_num")):
        if (config.mindformers.get(section) or {}).get(key) is not None:
            changed[f"{section}.{key}"] = num_micro
    if layers_per_stage is not None:
        parts = count_stage_parts(run.model, run.layout)
        per_stage = -(-layers_per_stage // parts) * parts
        changed["model.model_config.num_hidden_layers"] = per_stage * run.layout.pipeline_parallel
        if run.model.get("offset") is not None:
            changed["model.model_config.offset"] = 0
    return load_config(config.path, changed)
