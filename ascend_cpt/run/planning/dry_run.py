"""Resolves a run for a dry run, which needs neither the datasets nor the initial weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ascend_cpt.config.loader import RunConfig, load_config
from ascend_cpt.config.monitoring_schema import ValidationSetConfig
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.config.schema import EpochsConfig, SourceConfig
from ascend_cpt.config.sections import nearest
from ascend_cpt.config.values import format_count, parse_count
from ascend_cpt.data.packed.manifest import Manifest, manifest_path
from ascend_cpt.errors import ConfigError
from ascend_cpt.run.planning.assumed_run import (
    NUM_ASSUMED_TOKENS,
    choose_world_size,
    has_token_budget,
    make_placeholder_manifest,
)
from ascend_cpt.run.resolve import name_datasets, open_datasets, resolve
from ascend_cpt.run.resolved_run import ResolvedRun

NUM_EPOCH_TOKENS = 10**9
"""Tokens of a dataset of unknown size if the length of the run depends on it."""


def load_dry_run(
    path: Path,
    overrides: Mapping[str, Any],
    *,
    world_size: int | None,
    replace: tuple[str, ...] = (),
    packed: Mapping[str, str],
    assumed: Mapping[str, int],
    check_config: Callable[[RunConfig, int], None],
) -> ResolvedRun:
    """Resolve a run from a configuration. Datasets that are not on this machine are assumed to be large enough.

    Args:
        path: The configuration file.
        overrides: Dotted key → value; overrides the file.
        world_size: Number of devices, or None to use the product of the sizes in `parallel_config` (default: 1).
        replace: Dotted keys of the sections that `overrides` replaces.
        packed: Prefixes of the packed datasets for the raw-text sources.
        assumed: Assumed token counts of datasets that are not on this machine.
        check_config: Called with the loaded configuration and the number of devices; may raise ConfigError.

    Raises:
        CptError: naming every problem of the first check that fails.
    """
    config = load_config(path, overrides, replace)
    config = dataclasses.replace(config, cpt=dataclasses.replace(config.cpt, sources=name_datasets(config, packed)))
    num_devices = world_size or _count_devices(config)
    check_config(config, num_devices)
    cpt = config.cpt
    sets = cpt.validation.sets if cpt.validation else {}
    missing = [name for name, source in cpt.sources.items() if _is_missing(source)]
    _check_assumed(config, assumed, missing)
    # A subset has a known size.
    assumed = {name: cpt.sources[name].max_tokens or 0 for name in missing if cpt.sources[name].max_tokens} | dict(
        assumed
    )
    here = {name: source for name, source in cpt.sources.items() if name not in missing}
    opened = open_datasets(config, "cpt.sources", here)
    opened_sets = open_datasets(config, "cpt.validation.sets", {n: s for n, s in sets.items() if not _is_missing(s)})
    example = next(iter((*opened.values(), *opened_sets.values())), None)
    is_open = [name for name in missing if name not in assumed]
    _check_known(config, is_open)
    open_tokens = NUM_ASSUMED_TOKENS if has_token_budget(config) else NUM_EPOCH_TOKENS
    sources = {
        name: opened.get(name) or _assume(config, assumed.get(name, open_tokens), example) for name in cpt.sources
    }
    run = resolve(
        config,
        world_size=num_devices,
        sources=sources,
        validation={name: opened_sets.get(name) or _assume(config, open_tokens, example) for name in sets},
    )
    notes = _note_missing(config, missing, assumed)
    notes += [
        f"warning: {_place(config, 'validation.sets', name)}: {entry.path} not found"
        for name, entry in sets.items()
        if name not in opened_sets
    ]
    return dataclasses.replace(run, notes=(*run.notes, *notes), open_sources=frozenset(is_open))


def parse_assumed(text: str) -> dict[str, int]:
    """Parse `web=200B,qa=2.8B` as dataset → tokens.

    Raises:
        ConfigError: when the text does not have this form.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, equals, count = part.partition("=")
        try:
            if not (name.strip() and equals):
                raise ValueError(f"expected NAME=TOKENS, got {part!r}")
            sizes[name.strip()] = parse_count(count)
            if not sizes[name.strip()]:
                raise ValueError(f"{name.strip()}: must be above 0")
        except ValueError as error:
            raise ConfigError(f"--assume {text}: {error}; for example --assume web=200B,qa=2.8B") from None
    return sizes


def _count_devices(config: RunConfig) -> int:
    """Return the number of devices in `parallel_config`, or 1 if the launch determines it."""
    has_size = (config.mindformers.get("parallel_config") or {}).get("data_parallel") is not None
    return choose_world_size(config, None, 1) if has_size and not uses_cpu(config) else 1


def _is_missing(entry: SourceConfig | ValidationSetConfig) -> bool:
    """Return whether a dataset is missing, i.e. whether no file path starts with its prefix."""
    path = Path(entry.path)
    if path.exists() or manifest_path(path).exists():
        return False
    return not any(path.parent.glob(f"{path.name}*")) if path.parent.is_dir() else True


def _check_assumed(config: RunConfig, assumed: Mapping[str, int], missing: list[str]) -> None:
    for name, tokens in assumed.items():
        if name not in config.cpt.sources:
            raise ConfigError(f"--assume {name}: no such source{nearest(name, config.cpt.sources)}")
        if name not in missing:
            raise ConfigError(f"--assume {name}: the dataset exists and its size is known; remove it from --assume")
        if tokens < config.cpt.seq_length:
            raise ConfigError(f"--assume {name}={tokens}: less than a row of {config.cpt.seq_length} tokens")


def _check_known(config: RunConfig, is_open: list[str]) -> None:
    """Check that no phase's blend depends on an unknown dataset size."""
    for index, phase in enumerate(config.cpt.phases):
        for name in is_open:
            if isinstance(phase.blend.get(name), EpochsConfig) or phase.upweight:
                raise ConfigError(
                    f"{config.locate('cpt', 'phases', str(index))}: cpt.phases[{index}] ({phase.name}): the blend "
                    f"depends on the size of {name}, which was not found; give --assume {name}=TOKENS"
                )


def _assume(config: RunConfig, num_tokens: int, example: Manifest | None) -> Manifest:
    """Return a manifest with `num_tokens` tokens that fits the run and the datasets on this machine."""
    manifest = make_placeholder_manifest(config, num_tokens)
    return manifest if example is None else dataclasses.replace(manifest, tokenizer=example.tokenizer)


def _note_missing(config: RunConfig, missing: list[str], assumed: Mapping[str, int]) -> list[str]:
    notes = []
    for name in missing:
        where = f"{_place(config, 'sources', name)}: {config.cpt.sources[name].path} not found"
        if name in assumed:
            size = f"{format_count(assumed[name])} tokens are assumed"
        elif has_token_budget(config):
            size = f"its size is unknown; to see its epochs, give --assume {name}=TOKENS"
        else:
            size = (
                f"the length of the run depends on its size, and {format_count(NUM_EPOCH_TOKENS)} tokens are assumed; "
                f"give --assume {name}=TOKENS"
            )
        notes.append(f"warning: {where}; {size}")
    return notes


def _place(config: RunConfig, section: str, name: str) -> str:
    return f"{config.locate('cpt', *section.split('.'), name)}: cpt.{section}.{name}"
