"""Resolves a configuration to a run: layout, batch, steps, schedule, data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ascend_cpt.config.loader import RunConfig, load_config, raise_problems
from ascend_cpt.config.monitoring_schema import ValidationSetConfig
from ascend_cpt.config.parallel_layout import ParallelLayout, derive_layout
from ascend_cpt.config.schema import SourceConfig
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.data.packed.manifest import Manifest, check_shards, load_manifest
from ascend_cpt.errors import DataError
from ascend_cpt.run.checks.checkpoints import find_checkpoint_problems, note_keep_best
from ascend_cpt.run.checks.datasets import VALIDATION, find_dataset_problems, find_tokenizer_problems, note_padding
from ascend_cpt.run.checks.mindformers import find_model_problems, find_refusals
from ascend_cpt.run.checks.monitoring import find_monitoring_problems
from ascend_cpt.run.document_attention import find_boundary_problems
from ascend_cpt.run.resolve_recipe import resolve_recipe
from ascend_cpt.run.resolved_run import Dataset, ResolvedRun
from ascend_cpt.tasks.check import NEEDLE


def load_run(
    path: Path,
    overrides: Mapping[str, Any],
    *,
    world_size: int,
    replace: Sequence[str] = (),
    check_config: Callable[[RunConfig], None] | None = None,
) -> ResolvedRun:
    """Load a configuration, open its datasets and resolve the run.

    Args:
        path: The configuration file.
        overrides: Dotted key → value, set over the file.
        world_size: Devices of the launch.
        replace: Dotted keys whose section `overrides` replaces instead of merging into it.
        check_config: Called with the loaded configuration before datasets are opened; may raise ConfigError.

    Raises:
        CptError: naming every problem of the first check that fails.
    """
    config = load_config(path, dict(overrides), replace=tuple(replace))
    if check_config is not None:
        check_config(config)
    sets = config.cpt.validation.sets if config.cpt.validation else {}
    tasks = config.cpt.validation.tasks if config.cpt.validation else {}
    # Checked before anything starts; the tasks are loaded later.
    open_datasets(config, "cpt.validation.tasks", {name: task for name, task in tasks.items() if task.kind == NEEDLE})
    return resolve(
        config,
        world_size=world_size,
        sources=open_datasets(config, "cpt.sources", config.cpt.sources),
        validation=open_datasets(config, f"cpt.{VALIDATION}", sets),
    )


def resolve(
    config: RunConfig,
    *,
    world_size: int,
    sources: Mapping[str, Manifest],
    validation: Mapping[str, Manifest] | None = None,
) -> ResolvedRun:
    """Resolve a run.

    Args:
        config: The checked configuration.
        world_size: Devices of the launch.
        sources: Manifest of each `cpt.sources` entry.
        validation: Manifest of each `cpt.validation.sets` entry.

    Raises:
        ConfigError: naming every problem of the first check that fails.
    """
    layout = derive_layout(config, world_size)
    raise_problems(
        config.path,
        find_model_problems(config, layout)
        + find_refusals(config, layout)
        + find_monitoring_problems(config, layout)
        + find_checkpoint_problems(config),
    )
    source_sets = _list_datasets(config, sources, {})
    sets = config.cpt.validation.sets if config.cpt.validation else {}
    validation_sets = _list_datasets(config, validation or {}, {name: entry.seq_length for name, entry in sets.items()})
    raise_problems(config.path, _find_data_problems(config, layout, source_sets, validation_sets))
    seed = config.mindformers.get("seed", 42)
    recipe = resolve_recipe(config, layout, {source.name: source.num_rows for source in source_sets}, seed)
    output_dir = Path(config.mindformers.get("output_dir") or "output")
    return ResolvedRun(
        config=config,
        run_dir=output_dir / (config.cpt.run_name or config.path.stem),
        layout=layout,
        budget=recipe.budget,
        schedule=recipe.schedule,
        sources=source_sets,
        validation=validation_sets,
        seed=seed,
        order=recipe.order,
        notes=recipe.notes
        + note_padding(config, recipe.budget, source_sets, recipe.order.count(0, recipe.order.total_rows))
        + note_keep_best(config, recipe.budget),
    )


def _find_data_problems(
    config: RunConfig, layout: ParallelLayout, sources: tuple[Dataset, ...], validation: tuple[Dataset, ...]
) -> list[str]:
    datasets = sources + validation
    return [
        *find_dataset_problems(config, sources, "sources"),
        *find_dataset_problems(config, validation, VALIDATION),
        *find_tokenizer_problems(config, datasets),
        *find_boundary_problems(config, layout, [(dataset.name, dataset.manifest) for dataset in datasets]),
    ]


def _list_datasets(
    config: RunConfig, manifests: Mapping[str, Manifest], lengths: Mapping[str, int | None]
) -> tuple[Dataset, ...]:
    """Return the datasets with their row lengths: as configured, else as packed, else the run's."""
    return tuple(
        Dataset(
            name=name,
            manifest=manifest,
            seq_length=lengths.get(name) or manifest.seq_length or config.cpt.seq_length,
        )
        for name, manifest in manifests.items()
    )


def open_datasets(
    config: RunConfig, section: str, entries: Mapping[str, SourceConfig | ValidationSetConfig | TaskConfig]
) -> dict[str, Manifest]:
    """Return the manifest of each entry after checking that its files exist with the right sizes.

    Raises:
        DataError: when a dataset is missing or damaged.
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
