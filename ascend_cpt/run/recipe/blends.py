"""Resolves a phase's blend (weights, epochs per source, or factors on source sizes) and replay."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction

from ascend_cpt.config.loader import RunConfig, raise_problems
from ascend_cpt.config.schema import EpochsConfig, PhaseConfig
from ascend_cpt.config.sections import nearest
from ascend_cpt.config.values import format_count
from ascend_cpt.recipe.blend import normalize_shares


def fill_lengths(config: RunConfig, num_rows: Mapping[str, int]) -> RunConfig:
    """Return the configuration with lengths filled in for phases defined by the epochs of all their sources.

    Raises:
        ConfigError: a number of epochs is not greater than 0.
    """
    raise_problems(config.path, _find_problems(config))
    phases = tuple(_fill_length(config, phase, num_rows) for phase in config.cpt.phases)
    return dataclasses.replace(config, cpt=dataclasses.replace(config.cpt, phases=phases))


def _find_problems(config: RunConfig) -> list[str]:
    """Return a problem for each number of epochs or tokens that is too small."""
    problems = []
    for index, phase in enumerate(config.cpt.phases):
        for name, one in phase.blend.items():
            if isinstance(one, EpochsConfig) and not (math.isfinite(one.epochs) and one.epochs > 0):
                keys = ("phases", str(index), "blend", name, "epochs")
                problems.append(f"{config.locate('cpt', *keys)}: cpt.{'.'.join(keys)}: must be above 0")
    return problems


def _fill_length(config: RunConfig, phase: PhaseConfig, num_rows: Mapping[str, int]) -> PhaseConfig:
    epochs = _list_epochs(phase)
    if not epochs or len(epochs) < len(phase.blend) or not set(epochs) <= set(num_rows):
        return phase
    if phase.tokens is not None or phase.until is not None:
        return phase
    rows = sum((number * num_rows[name] for name, number in epochs.items()), start=Fraction(0))
    if config.cpt.replay is not None:
        rows /= 1 - Fraction(str(config.cpt.replay.fraction))
    return dataclasses.replace(phase, tokens=round(rows * config.cpt.seq_length))


def _list_epochs(phase: PhaseConfig) -> dict[str, Fraction]:
    """Return the epochs of the sources that are specified by epochs."""
    return {name: Fraction(str(one.epochs)) for name, one in phase.blend.items() if isinstance(one, EpochsConfig)}


def resolve_blend(
    config: RunConfig, phase: PhaseConfig, num_rows: Mapping[str, int], phase_rows: int
) -> dict[str, Fraction] | None:
    """Return the shares of a phase's sources including replay, or None if all rows are shuffled together.

    The shares are sorted by name so that the row order does not depend on the key order.

    Args:
        config: The run's configuration.
        phase: A phase of the run.
        num_rows: Number of rows in each source of the run.
        phase_rows: Number of rows in the phase.

    Raises:
        ValueError: the blend is missing or cannot be used.
    """
    replay = config.cpt.replay
    fixed = {name: number * num_rows[name] / phase_rows for name, number in _list_epochs(phase).items()}
    weights = {name: one for name, one in phase.blend.items() if not isinstance(one, EpochsConfig)}
    if phase.upweight:
        weights = _weigh_by_size(config, phase, num_rows)
    elif not phase.blend:
        others = {name: rows for name, rows in num_rows.items() if replay is None or name != replay.source}
        if config.cpt.phases and len(others) > 1:
            raise ValueError(f"has no blend; give the weight of each source ({', '.join(others)})")
        if replay is None and not config.cpt.phases and len(others) > 1:
            return None
        weights = dict(others)
    if replay is None and not fixed:
        return normalize_shares(dict(sorted(weights.items())))
    if replay is not None and not (weights or fixed):
        raise ValueError(f"has no source other than the replayed {replay.source}; add one")
    replayed = {replay.source: Fraction(str(replay.fraction))} if replay is not None else {}
    rest = 1 - sum(replayed.values(), start=Fraction(0))
    taken = sum(fixed.values(), start=Fraction(0))
    if not weights:
        # With a given length, the epochs are met only if they fill the phase.
        _check_filled(config, phase, taken, rest, phase_rows)
        fixed = {name: share / taken * rest for name, share in fixed.items()}
    elif taken >= rest:
        tokens, of = (format_count(float(share * phase_rows * config.cpt.seq_length)) for share in (taken, rest))
        raise ValueError(
            f"the epochs of {', '.join(fixed)} are {tokens} tokens, but the phase has {of}; lower them, make the phase "
            "longer, or give every source by epochs and no length"
        )
    total = sum(Fraction(str(weight)) for weight in weights.values())
    scaled = {name: Fraction(str(weight)) / total * (rest - taken) for name, weight in weights.items()}
    return normalize_shares(dict(sorted({**scaled, **fixed, **replayed}.items())))


def _check_filled(config: RunConfig, phase: PhaseConfig, taken: Fraction, rest: Fraction, phase_rows: int) -> None:
    """Check that the epochs of all sources fill the phase, allowing for rounding to whole steps."""
    missing = abs(taken - rest)
    if missing * phase_rows > max(phase_rows // 100, 2 * _max_batch(config)):
        tokens, of = (format_count(float(share * phase_rows * config.cpt.seq_length)) for share in (taken, rest))
        raise ValueError(
            f"all sources are given by epochs, which are {tokens} tokens, but the phase has {of}; remove its length, "
            "or give one source a weight"
        )


def _max_batch(config: RunConfig) -> int:
    size = config.cpt.global_batch_size
    if isinstance(size, tuple):
        return max(stage.size for stage in size)
    return size or 1


def _weigh_by_size(config: RunConfig, phase: PhaseConfig, num_rows: Mapping[str, int]) -> dict[str, float]:
    """Return rows × factor for each source except the replayed one."""
    replay = config.cpt.replay
    if phase.blend:
        raise ValueError("has both blend and upweight; keep one")
    weights = {name: float(rows) for name, rows in num_rows.items() if replay is None or name != replay.source}
    for name, factor in phase.upweight.items():
        if name not in weights:
            raise ValueError(f"upweight.{name}: no such source{nearest(name, weights)}")
        weights[name] *= factor
    return weights
