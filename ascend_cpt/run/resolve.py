"""From a checked configuration to a run that is settled in every number: layout, batch, steps, schedule, data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ascend_cpt.config.layout import derive_layout
from ascend_cpt.config.loader import RunConfig, raise_problems
from ascend_cpt.config.monitoring_schema import ValidationSetConfig
from ascend_cpt.config.schema import SourceConfig
from ascend_cpt.data.manifest import Manifest, check_shards, load_manifest
from ascend_cpt.errors import DataError
from ascend_cpt.recipe.phases import SampleOrder
from ascend_cpt.run.checks.datasets import VALIDATION, _check_datasets, _check_tokenizers
from ascend_cpt.run.checks.mindformers import check_model, find_refusals
from ascend_cpt.run.checks.monitoring import find_monitoring_problems
from ascend_cpt.run.document_attention import find_border_problems
from ascend_cpt.run.resolve_recipe import (
    check_epochs,
    check_intervals,
    note_advice,
    note_rounding,
    settle_budget,
    settle_phases,
    settle_rate,
)
from ascend_cpt.run.resolved_run import Dataset, RunPlan


def resolve(
    config: RunConfig,
    *,
    world_size: int,
    sources: Mapping[str, Manifest],
    validation: Mapping[str, Manifest] | None = None,
) -> RunPlan:
    """Settle every number of a run.

    Args:
        config: The checked configuration.
        world_size: Devices of the launch.
        sources: Manifest of each `cpt.sources` entry.
        validation: Manifest of each `cpt.validation.sets` entry.

    Raises:
        ConfigError: naming every number that does not fit.
    """
    problems: list[str] = []
    layout = derive_layout(config, world_size)
    check_model(config, layout, problems)
    find_refusals(config, layout, problems)
    find_monitoring_problems(config, layout, problems)
    raise_problems(config.path, problems)
    source_sets = _list_datasets(config, sources, {})
    sets = config.cpt.validation.sets if config.cpt.validation else {}
    validation_sets = _list_datasets(config, validation or {}, {name: entry.seq_length for name, entry in sets.items()})
    _check_datasets(config, source_sets, "sources", problems)
    _check_datasets(config, validation_sets, VALIDATION, problems)
    _check_tokenizers(config, source_sets + validation_sets, problems)
    find_border_problems(config, layout, [*sources.items(), *(validation or {}).items()], problems)
    if validation_sets and layout.pipeline_parallel > 1:
        problems.append(
            f"{config.locate('cpt', 'validation')}: cpt.validation: needs pipeline_stage 1; remove one of them"
        )
    raise_problems(config.path, problems)
    seed = config.mindformers.get("seed", 42)
    num_rows = {source.name: source.num_rows for source in source_sets}
    budget = settle_budget(config, layout, sum(num_rows.values()), problems)
    raise_problems(config.path, problems)
    assert budget is not None
    check_intervals(config, budget, problems)
    schedule, notes = settle_rate(config, budget, sum(num_rows.values()), problems)
    raise_problems(config.path, problems)
    if schedule is not None:
        budget = dataclasses.replace(budget, warmup_steps=schedule.warmup_steps)
    phases = settle_phases(config, budget, schedule, num_rows, problems)
    raise_problems(config.path, problems)
    order = SampleOrder(num_rows=num_rows, phases=phases, global_batch_size=budget.global_batch_size, seed=seed)
    notes += note_rounding(config, budget, phases) + check_epochs(config, order, problems) + note_advice(config)
    raise_problems(config.path, problems)
    output_dir = Path(config.mindformers.get("output_dir") or "output")
    return RunPlan(
        config=config,
        run_dir=output_dir / (config.cpt.run_name or config.path.stem),
        layout=layout,
        budget=budget,
        schedule=schedule,
        sources=source_sets,
        validation=validation_sets,
        seed=seed,
        order=order,
        notes=tuple(notes),
    )


def _list_datasets(
    config: RunConfig, manifests: Mapping[str, Manifest], lengths: Mapping[str, int | None]
) -> tuple[Dataset, ...]:
    """Return the datasets with the length of their rows: given, or what they were packed with, or the run's."""
    return tuple(
        Dataset(
            name=name,
            manifest=manifest,
            seq_length=lengths.get(name) or manifest.seq_length or config.cpt.seq_length,
        )
        for name, manifest in manifests.items()
    )


def open_datasets(
    config: RunConfig, section: str, entries: Mapping[str, SourceConfig | ValidationSetConfig]
) -> dict[str, Manifest]:
    """Return the manifest of each entry after checking that its files are there in full size.

    Raises:
        DataError: missing or damaged dataset.
    """
    opened: dict[str, Manifest] = {}
    for name, entry in entries.items():
        try:
            opened[name] = load_manifest(entry.path)
            check_shards(opened[name])
        except DataError as error:
            where = f"{config.locate(*section.split('.'), name)}: {section}.{name}"
            raise DataError(f"{where}: {error} (paths are relative to {Path.cwd()})") from None
    return opened
