"""Resolves the recipe of a run: batch and steps, learning rate, phases, row order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from ascend_cpt.config.loader import RunConfig, raise_problems
from ascend_cpt.config.parallel_layout import ParallelLayout, uses_cpu
from ascend_cpt.config.schema import PhaseConfig, SourceConfig
from ascend_cpt.config.sections import nearest
from ascend_cpt.config.values import Interval, Patience, format_count
from ascend_cpt.errors import ConfigError
from ascend_cpt.recipe.blend import normalize_shares
from ascend_cpt.recipe.budget import Budget, count_steps, split_global_batch
from ascend_cpt.recipe.phases import Phase, SampleOrder
from ascend_cpt.recipe.presets import find_preset, resolve_schedule
from ascend_cpt.recipe.schedule import Schedule, find_lr_fraction

MANY_EPOCHS = 4  # up to here repeated data are about as good as new data: Muennighoff et al., arXiv 2305.16264
FEW_TOKENS = 1_000_000_000  # practitioners' rule: continued pretraining needs at least a few billion tokens


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe:
    """Batch and steps, learning rate, phases and row order of a run.

    `schedule` is None if MindFormers' `lr_schedule` is used. `notes` are lines to print: defaults filled in, rounding,
    advice.
    """

    budget: Budget
    schedule: Schedule | None
    order: SampleOrder
    notes: tuple[str, ...]


def resolve_recipe(config: RunConfig, layout: ParallelLayout, num_rows: dict[str, int], seed: int) -> ResolvedRecipe:
    """Resolve batch, steps, learning rate, phases and row order, in this sequence.

    Args:
        config: The checked configuration.
        layout: Its parallel layout.
        num_rows: Rows of each source.
        seed: Of the row order.

    Raises:
        ConfigError: naming every problem of the first part that has any.
    """
    budget = _resolve_budget(config, layout, sum(num_rows.values()))
    raise_problems(config.path, _find_interval_problems(config, budget))
    schedule, notes = _resolve_rate(config, budget, sum(num_rows.values()))
    if schedule is not None:
        budget = dataclasses.replace(budget, warmup_steps=schedule.warmup_steps)
    phases = _resolve_phases(config, budget, schedule, num_rows)
    order = SampleOrder(num_rows=num_rows, phases=phases, global_batch_size=budget.global_batch_size, seed=seed)
    problems, epoch_notes = _check_epochs(config, order)
    raise_problems(config.path, problems)
    notes += _note_rounding(config, budget, phases) + epoch_notes + _note_advice(config, budget.total_tokens)
    return ResolvedRecipe(budget=budget, schedule=schedule, order=order, notes=tuple(notes))


def _resolve_budget(config: RunConfig, layout: ParallelLayout, num_rows: int) -> Budget:
    """Return batch and number of steps. `num_rows` counts the rows of all sources."""
    micro, accumulation = _split_batch(config, layout)
    tokens_per_step = config.cpt.global_batch_size * config.cpt.seq_length
    tokens, where = _choose_total_tokens(config, num_rows)
    try:
        total_steps = count_steps(tokens, tokens_per_step)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return Budget(
        seq_length=config.cpt.seq_length,
        global_batch_size=config.cpt.global_batch_size,
        micro_batch_size=micro,
        num_accumulation_steps=accumulation,
        total_steps=total_steps,
    )


def _split_batch(config: RunConfig, layout: ParallelLayout) -> tuple[int, int]:
    """Return the rows of a micro batch and the micro batches of a step."""
    problems: list[str] = []
    sections, cpt = config.mindformers, config.cpt
    runner = sections.get("runner_config") or {}
    where = config.locate("cpt", "global_batch_size")
    accumulation = runner.get("gradient_accumulation_steps")
    if layout.pipeline_parallel > 1:
        accumulation = (sections.get("parallel_config") or {}).get("micro_batch_num", accumulation)
    try:
        micro, steps = split_global_batch(
            cpt.global_batch_size, layout.data_parallel, runner.get("batch_size"), accumulation
        )
    except ValueError as error:
        raise ConfigError(f"{where}: cpt.{error}") from None
    if steps > 1 and uses_cpu(config):
        problems.append(
            f"{where}: a CPU run cannot accumulate gradients (got {steps} micro batches): "
            "MindFormers would drop them; remove runner_config.batch_size and gradient_accumulation_steps"
        )
    elif steps > 1 and layout.world_size == 1:
        problems.append(
            f"{where}: one device cannot accumulate gradients (got {steps} micro batches): "
            "MindFormers would drop them; set cpt.global_batch_size to runner_config.batch_size"
        )
    if layout.pipeline_parallel > 1 and steps < layout.pipeline_parallel:
        problems.append(
            f"{where}: pipeline_stage {layout.pipeline_parallel} needs at least as many micro batches, got {steps}; "
            "raise cpt.global_batch_size or lower runner_config.batch_size"
        )
    raise_problems(config.path, problems)
    return micro, steps


def _choose_total_tokens(config: RunConfig, num_rows: int) -> tuple[int, str]:
    """Return the tokens of the run and the location of the key: token budget, phases, or epochs over the data."""
    cpt = config.cpt
    epochs = (config.mindformers.get("runner_config") or {}).get("epochs")
    tokens = cpt.train_tokens
    where = config.locate("cpt", "train_tokens")
    if tokens is None and cpt.phases and all(phase.tokens is not None for phase in cpt.phases):
        tokens = sum(phase.tokens or 0 for phase in cpt.phases)
        where = config.locate("cpt", "phases")
    if tokens is None:
        return num_rows * cpt.seq_length * (epochs or 1), config.locate("cpt", "sources")
    if epochs is not None:
        given = "cpt.train_tokens" if cpt.train_tokens is not None else "the tokens of cpt.phases"
        raise ConfigError(f"{where}: {given} and runner_config.epochs are both set; keep one")
    return tokens, where


def _resolve_rate(config: RunConfig, budget: Budget, num_rows: int) -> tuple[Schedule | None, list[str]]:
    """Return the schedule, or None if MindFormers' is used, and notes about it."""
    schedule = config.cpt.schedule
    where = f"{config.locate('cpt', 'schedule')}: cpt.schedule"
    has_section = config.mindformers.get("lr_schedule") is not None
    if schedule is None:
        if not has_section:
            raise ConfigError(f"{config.path}: no learning rate; add cpt.schedule with peak_lr")
        return None, []
    if has_section:
        raise ConfigError(f"{where} and lr_schedule ({config.locate('lr_schedule')}) are both set; keep one")
    num_epochs = budget.total_steps * budget.global_batch_size / num_rows
    try:
        return resolve_schedule(
            schedule, total_steps=budget.total_steps, tokens_per_step=budget.tokens_per_step, num_epochs=num_epochs
        )
    except ValueError as error:
        key = str(error).partition(":")[0].partition(".")[0]
        where = f"{config.locate('cpt', 'schedule', key)}: cpt.schedule"
        is_key = key.replace("_", "a").isidentifier() and hasattr(schedule, key)
        raise ConfigError(f"{where}{'.' if is_key else ': '}{error}") from None


def _resolve_phases(
    config: RunConfig, budget: Budget, schedule: Schedule | None, num_rows: Mapping[str, int]
) -> tuple[Phase, ...]:
    """Return the phases of the run."""
    phases = config.cpt.phases or (PhaseConfig(name="train"),)
    problems = _find_name_problems(config, phases, num_rows)
    resolved: list[Phase] = []
    first = 0
    for index, phase in enumerate(phases):
        where = f"{config.locate('cpt', 'phases', str(index))}: cpt.phases[{index}] ({phase.name})"
        is_last = index == len(phases) - 1
        try:
            stop = _find_stop(config, phase, first, budget, schedule, is_last=is_last)
            if is_last and stop != budget.total_steps:
                raise ValueError(
                    f"ends at step {stop}, but the run has {budget.total_steps} steps "
                    f"({format_count(budget.total_tokens)} tokens); make the end of this phase equal to the token "
                    "budget, or remove one of the two settings"
                )
            if not is_last and not first < stop < budget.total_steps:
                raise ValueError(
                    f"would end at step {stop}, which is not between its start at step {first} and the end of the run "
                    f"at step {budget.total_steps}; the phases after it need steps too"
                )
            shares = _resolve_blend(config, phase, num_rows)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            break
        resolved.append(Phase(name=phase.name, first_step=first, stop_step=stop, shares=shares))
        first = stop
    raise_problems(config.path, problems)
    return tuple(resolved)


def _find_name_problems(config: RunConfig, phases: tuple[PhaseConfig, ...], num_rows: Mapping[str, int]) -> list[str]:
    problems: list[str] = []
    names = [phase.name for phase in phases]
    for index, name in enumerate(names):
        if name in names[:index]:
            problems.append(
                f"{config.locate('cpt', 'phases', str(index))}: cpt.phases: two are named {name!r}; rename one"
            )
    used: set[str] = set()
    for index, phase in enumerate(phases):
        used |= set(phase.blend) or (set(num_rows) if len(num_rows) == 1 or not config.cpt.phases else set())
        for source in phase.blend:
            if source not in num_rows:
                where = config.locate("cpt", "phases", str(index), "blend", source)
                problems.append(
                    f"{where}: cpt.phases[{index}].blend.{source}: no such source{nearest(source, num_rows)}"
                )
    replay = config.cpt.replay
    if replay is not None:
        used.add(replay.source)
        where = f"{config.locate('cpt', 'replay')}: cpt.replay"
        if replay.source not in num_rows:
            problems.append(f"{where}.source: no source {replay.source!r}{nearest(replay.source, num_rows)}")
        if not 0 < replay.fraction < 1:
            problems.append(f"{where}.fraction: must lie between 0 and 1, got {replay.fraction}")
        if any(replay.source in phase.blend for phase in phases):
            problems.append(f"{where}: {replay.source} has a weight in cpt.phases as well; keep one of the two")
    for name in num_rows:
        if name not in used and not problems:
            problems.append(
                f"{config.locate('cpt', 'sources', name)}: cpt.sources.{name}: no phase uses it; "
                "give it a weight in a blend or remove it"
            )
    return problems


def _find_stop(
    config: RunConfig, phase: PhaseConfig, first: int, budget: Budget, schedule: Schedule | None, *, is_last: bool
) -> int:
    until = phase.until
    given = [phase.tokens is not None, until is not None and until.tokens is not None]
    given.append(until is not None and until.lr_fraction is not None)
    if sum(given) > 1 or (until is not None and not any(given)):
        raise ValueError("set exactly one end: tokens, or until with tokens or lr_fraction")
    if phase.tokens is not None:
        return first + count_steps(phase.tokens, budget.tokens_per_step)
    if until is not None and until.tokens is not None:
        return count_steps(until.tokens, budget.tokens_per_step)
    fraction = until.lr_fraction if until is not None else None
    preset = find_preset(config.cpt.schedule) if config.cpt.schedule is not None else None
    if fraction is None and not is_last and preset is not None and len(config.cpt.phases) == 2:
        fraction = preset.switch_lr_fraction
    if fraction is not None:
        if schedule is None:
            raise ValueError("lr_fraction needs cpt.schedule; give tokens instead")
        return find_lr_fraction(schedule, fraction)
    if not is_last:
        raise ValueError("has no end; add tokens, or until: {lr_fraction: 0.2}")
    return budget.total_steps


def _resolve_blend(config: RunConfig, phase: PhaseConfig, num_rows: Mapping[str, int]) -> dict[str, Fraction] | None:
    """Return the shares of a phase's sources including replay; None if all rows are shuffled together.

    Sorted by name, so that the row order does not depend on the order of the keys.
    """
    replay = config.cpt.replay
    weights: Mapping[str, float] = phase.blend
    if not weights:
        others = {name: rows for name, rows in num_rows.items() if replay is None or name != replay.source}
        if config.cpt.phases and len(others) > 1:
            raise ValueError(f"has no blend; give the weight of each source ({', '.join(others)})")
        if replay is None and not config.cpt.phases and len(others) > 1:
            return None
        weights = others
    if replay is None:
        return normalize_shares(dict(sorted(weights.items())))
    if not weights:
        raise ValueError(f"has no source other than the replayed {replay.source}; add one")
    fraction = Fraction(str(replay.fraction))
    total = sum(Fraction(str(weight)) for weight in weights.values())
    scaled = {name: Fraction(str(weight)) / total * (1 - fraction) for name, weight in weights.items()}
    return normalize_shares(dict(sorted({**scaled, replay.source: fraction}.items())))


def _check_epochs(config: RunConfig, order: SampleOrder) -> tuple[list[str], list[str]]:
    """Return a problem for each source that needs more than `max_epochs`, and warnings about many epochs."""
    problems, notes = [], []
    for name, drawn in order.count(0, order.total_rows).items():
        epochs = drawn / order.num_rows[name]
        limit = config.cpt.sources.get(name, SourceConfig(path="")).max_epochs
        have, need = (format_count(rows * config.cpt.seq_length) for rows in (order.num_rows[name], drawn))
        if limit is not None and epochs > limit:
            problems.append(
                f"{config.locate('cpt', 'sources', name, 'max_epochs')}: cpt.sources.{name}: the run needs {need} "
                f"tokens of this source ({epochs:.3g} epochs of {have}), but max_epochs is {limit:g}; lower its "
                "weight, shorten the run, add data or raise max_epochs"
            )
        elif epochs > MANY_EPOCHS:
            notes.append(
                f"warning: {name}: {epochs:.3g} epochs; more than about {MANY_EPOCHS} epochs of the same data help "
                "little (arXiv 2305.16264)"
            )
    return problems, notes


def _find_interval_problems(config: RunConfig, budget: Budget) -> list[str]:
    """Return a problem for each interval that is longer than the run, and so would only take effect at its end."""
    problems: list[str] = []
    cpt = config.cpt
    verbs = {"checkpoint": "save", "validation": "validate"}
    intervals: dict[tuple[str, str], Interval | None] = {("checkpoint", "every"): cpt.checkpoint.every}
    if cpt.validation is not None:
        intervals["validation", "every"] = cpt.validation.every
    for keys, interval in intervals.items():
        if interval is not None and interval.to_steps(budget.tokens_per_step) > budget.total_steps:
            problems.append(
                f"{config.locate('cpt', *keys)}: cpt.{'.'.join(keys)}: {interval} is longer than the run of "
                f"{budget.total_steps} steps ({format_count(budget.total_tokens)} tokens); lower it, or remove "
                f"the key to {verbs[keys[0]]} only at the end"
            )
    return problems or _find_patience_problems(config, budget)


def _find_patience_problems(config: RunConfig, budget: Budget) -> list[str]:
    """Return a problem for each `patience` that cannot be used up before the end of the run."""
    validation = config.cpt.validation
    if validation is None or validation.every is None:
        return []
    every = validation.every.to_steps(budget.tokens_per_step)
    problems: list[str] = []
    watched: list[tuple[str, str, Patience | None]] = [
        ("sets", n, entry.patience) for n, entry in validation.sets.items()
    ]
    watched += [("tasks", name, task.patience) for name, task in validation.tasks.items()]
    for kind, name, patience in watched:
        if patience is None:
            continue
        steps = patience.to_steps(budget.tokens_per_step)
        # The first validation that can be above its limit is the one after `every` steps.
        later = -(-budget.total_steps // every) - 1
        if patience.count > later if steps is None else steps > budget.total_steps - every:
            keys = ("cpt", "validation", kind, name, "patience")
            problems.append(
                f"{config.locate(*keys)}: {'.'.join(keys)}: {patience} cannot be used up in a run of "
                f"{budget.total_steps} steps with a validation every {every}; lower patience, or let the alarm "
                "warn and remove patience"
            )
    return problems


def _note_rounding(config: RunConfig, budget: Budget, phases: tuple[Phase, ...]) -> list[str]:
    """Return a line for every number of tokens that was rounded to whole steps."""
    per_step = budget.tokens_per_step
    requested: list[tuple[str, int | None, int]] = [("train_tokens", config.cpt.train_tokens, budget.total_steps)]
    if config.cpt.schedule is not None and config.cpt.schedule.warmup_tokens:
        requested.append(("warmup_tokens", config.cpt.schedule.warmup_tokens, budget.warmup_steps))
    for given, phase in zip(config.cpt.phases, phases, strict=False):
        requested.append((f"tokens of phase {phase.name}", given.tokens, phase.num_steps))
        if given.until is not None:
            requested.append((f"end of phase {phase.name}", given.until.tokens, phase.stop_step))
    return [
        f"rounded: {name} {tokens:,} → {steps:,} steps = {steps * per_step:,} tokens"
        for name, tokens, steps in requested
        if tokens is not None and tokens != steps * per_step
    ]


def _note_advice(config: RunConfig, total_tokens: int) -> list[str]:
    """Return a line for each setting without effect, and warnings from the literature."""
    notes = []
    if total_tokens < FEW_TOKENS and config.initial_weights not in (None, "random"):
        notes.append(
            f"warning: {format_count(total_tokens)} tokens: below about {format_count(FEW_TOKENS)}, supervised "
            "fine-tuning may serve better than continued pretraining (docs/recipes.md)"
        )
    schedule = config.cpt.schedule
    preset = find_preset(schedule) if schedule is not None else None
    if preset is not None and preset.wants_replay and config.cpt.replay is None and len(config.cpt.sources) == 1:
        notes.append(
            f"warning: re-warming without replay causes forgetting; replay data like the base model's (cpt.replay; 5 % "
            f"for a weak distribution shift, 25 % for a strong one, {preset.source})"
        )
    if config.cpt.pad_length is not None:
        notes.append(
            f"unused: pad_length {config.cpt.pad_length} ({config.locate('cpt', 'pad_length')}): accepted for "
            "compatibility, but has no effect"
        )
    longest = config.mindformers["model"]["model_config"].get("max_position_embeddings")
    if longest is not None and config.cpt.seq_length > longest:
        notes.append(
            f"warning: cpt.seq_length {config.cpt.seq_length} is more than model.model_config.max_position_embeddings"
            f" ({longest}), which is copied to an exported config.json; raise max_position_embeddings, and rope "
            "theta or scaling if needed"
        )
    return notes
