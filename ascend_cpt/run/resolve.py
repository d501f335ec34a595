"""Resolves a configuration to a run with its layout, batch, steps, schedule and data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ascend_cpt.config.loader import RunConfig, load_config, raise_problems
from ascend_cpt.config.monitoring_schema import ValidationSetConfig
from ascend_cpt.config.parallel_layout import ParallelLayout, derive_layout
from ascend_cpt.config.schema import SourceConfig
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.data.packed.manifest import Manifest, NoManifestError, check_shards, load_manifest
from ascend_cpt.errors import DataError
from ascend_cpt.run.checks.checkpoints import find_checkpoint_problems, note_keep_best
from ascend_cpt.run.checks.datasets import VALIDATION, find_dataset_problems, find_tokenizer_problems, note_padding
from ascend_cpt.run.checks.environment import find_environment_problems
from ascend_cpt.run.checks.lora import find_lora_problems
from ascend_cpt.run.checks.loss_chunks import find_chunk_problems
from ascend_cpt.run.checks.mindformers import find_model_problems, find_refusals
from ascend_cpt.run.checks.monitoring import find_monitoring_problems
from ascend_cpt.run.checks.trainable import find_trainable_problems
from ascend_cpt.run.document_attention import find_boundary_problems
from ascend_cpt.run.raw_sources import find_raw_sources, find_tokenizer
from ascend_cpt.run.recipe.smaller_world import keep_global_batch
from ascend_cpt.run.resolve_recipe import resolve_recipe
from ascend_cpt.run.resolved_run import Dataset, ResolvedRun
from ascend_cpt.tasks.check import NEEDLE


def load_run(
    path: Path,
    overrides: Mapping[str, Any],
    *,
    world_size: int,
    full_world_size: int | None = None,
    replace: Sequence[str] = (),
    check_config: Callable[[RunConfig], None] | None = None,
    packed: Mapping[str, str] | None = None,
) -> ResolvedRun:
    """Load a configuration, open its datasets and resolve the run.

    Args:
        path: The configuration file.
        overrides: Dotted key → value; overrides the file.
        world_size: Number of devices in the launch.
        full_world_size: Number of devices in the whole job, if some of its nodes are lost; the batch is for these.
        replace: Dotted keys of the sections that `overrides` replaces instead of merging.
        check_config: Called with the loaded configuration before datasets are opened; may raise ConfigError.
        packed: Prefixes of the packed datasets for the raw-text sources, by default looked up in the cache.

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
    if full_world_size is not None:
        config = keep_global_batch(config, world_size=world_size, full_world_size=full_world_size)
    return resolve(
        config,
        world_size=world_size,
        sources=open_datasets(config, "cpt.sources", name_datasets(config, packed)),
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
        + find_checkpoint_problems(config)
        + find_environment_problems(config, layout)
        + find_chunk_problems(config, layout)
        + find_trainable_problems(config)
        + find_lora_problems(config),
    )
    raise_problems(config.path, _find_subset_problems(config))
    subsets = {
        name: source.max_tokens // config.cpt.seq_length
        for name, source in config.cpt.sources.items()
        if source.max_tokens is not None
    }
    source_sets = _list_datasets(config, sources, {}, subsets)
    sets = config.cpt.validation.sets if config.cpt.validation else {}
    validation_sets = _list_datasets(
        config, validation or {}, {name: entry.seq_length for name, entry in sets.items()}, {}
    )
    raise_problems(config.path, _find_data_problems(config, layout, source_sets, validation_sets))
    seed = config.mindformers.get("seed", 42)
    pool_rows = {source.name: source.pool_rows for source in source_sets if source.num_rows < source.pool_rows}
    num_rows = {source.name: source.num_rows for source in source_sets}
    recipe = resolve_recipe(config, layout, num_rows, seed, pool_rows)
    return ResolvedRun(
        config=config,
        run_dir=find_run_dir(config),
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


def find_run_dir(config: RunConfig) -> Path:
    """Return the run folder of a configuration."""
    return Path(config.mindformers.get("output_dir") or "output") / (config.cpt.run_name or config.path.stem)


def name_datasets(config: RunConfig, packed: Mapping[str, str] | None) -> dict[str, SourceConfig]:
    """Return the sources, replacing raw text with the path of its packed dataset.

    Raises:
        CptError: when raw text is not packed yet or cannot be read.
    """
    if packed is None:
        packed = {}
        for source in find_raw_sources(config):
            if not source.is_packed:
                where = config.locate("cpt", "sources", source.name)
                raise DataError(
                    f"{where}: cpt.sources.{source.name}: the text of raw is not packed yet; run_cpt.py --config "
                    f"{config.path} packs it before training"
                )
            packed[source.name] = source.prefix
    return {
        name: dataclasses.replace(entry, path=packed[name]) if entry.raw is not None else entry
        for name, entry in config.cpt.sources.items()
    }


def _find_subset_problems(config: RunConfig) -> list[str]:
    return [
        f"{config.locate('cpt', 'sources', name, 'max_tokens')}: cpt.sources.{name}.max_tokens: {source.max_tokens} is "
        f"less than a row of {config.cpt.seq_length} tokens"
        for name, source in config.cpt.sources.items()
        if source.max_tokens is not None and source.max_tokens < config.cpt.seq_length
    ]


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
    config: RunConfig,
    manifests: Mapping[str, Manifest],
    lengths: Mapping[str, int | None],
    subsets: Mapping[str, int],
) -> tuple[Dataset, ...]:
    """Return the datasets with their subsets and row lengths (as configured, else as packed, else the run's)."""
    return tuple(
        Dataset(
            name=name,
            manifest=manifest,
            seq_length=lengths.get(name) or manifest.seq_length or config.cpt.seq_length,
            max_rows=subsets.get(name),
        )
        for name, manifest in manifests.items()
    )


def open_datasets(
    config: RunConfig, section: str, entries: Mapping[str, SourceConfig | ValidationSetConfig | TaskConfig]
) -> dict[str, Manifest]:
    """Return each entry's manifest after checking that the dataset's files exist and have the right sizes.

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
            if isinstance(error, NoManifestError):
                raise DataError(f"{where}: {error.explain(error.data_path, find_tokenizer(config))}") from None
            raise DataError(f"{where}: {error} (paths are relative to {Path.cwd()})") from None
    return opened
