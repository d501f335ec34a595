"""Resolves the recipe of a run: batch and steps, learning rate, phases, row order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ascend_cpt.config.loader import RunConfig, raise_problems
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.config.schema import PhaseConfig, SourceConfig
from ascend_cpt.config.sections import nearest
from ascend_cpt.config.values import Patience, format_count
from ascend_cpt.errors import ConfigError
from ascend_cpt.model.rope import YarnScaling, read_rope
from ascend_cpt.recipe.budget import BatchSteps, Budget
from ascend_cpt.recipe.phases import Phase, SampleOrder
from ascend_cpt.recipe.presets import find_preset, resolve_schedule
from ascend_cpt.recipe.schedule import Schedule, find_lr_fraction
from ascend_cpt.run.recipe.batch import place_stages, resolve_batch
from ascend_cpt.run.recipe.blends import fill_lengths, resolve_blend
from ascend_cpt.run.recipe.restarts import count_rows_of_run, divide_budget, repeat_schedule

MANY_EPOCHS = 4  # up to this many epochs, repeated data is nearly as good as new: Muennighoff et al., arXiv 2305.16264
FEW_TOKENS = 1_000_000_000  # rule of thumb: continued pretraining needs at least a few billion tokens


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


def resolve_recipe(
    config: RunConfig,
    layout: ParallelLayout,
    num_rows: dict[str, int],
    seed: int,
    pool_rows: dict[str, int] | None = None,
) -> ResolvedRecipe:
    """Resolve batch, steps, learning rate, phases and row order, in this sequence.

    Args:
        config: The checked configuration.
        layout: The run's parallel layout.
        num_rows: Number of rows in each source.
        seed: Seed of the row order.
        pool_rows: For each source with `max_tokens`, the number of rows from which its subset is chosen.

    Raises:
        ConfigError: naming every problem in the first part that has any.
    """
    config = fill_lengths(config, num_rows)
    budget = _resolve_budget(config, layout, sum(num_rows.values()))
    raise_problems(config.path, _find_interval_problems(config, budget))
    restarts = config.cpt.restart_phases
    phase_budget = divide_budget(config, budget) if restarts else budget
    schedule, notes = _resolve_rate(config, phase_budget, sum(num_rows.values()))
    if restarts and schedule is not None:
        schedule = repeat_schedule(schedule, len(config.cpt.phases))
    if schedule is not None:
        budget = dataclasses.replace(budget, warmup_steps=schedule.warmup_steps)
    phases = _resolve_phases(config, budget, schedule, num_rows)
    order = SampleOrder(
        num_rows=num_rows,
        phases=phases,
        global_batch_size=budget.global_batch_size,
        seed=seed,
        pool_rows=pool_rows or {},
        ramp=BatchSteps.of(budget.ramp) if budget.ramp else None,
        restarts=restarts,
    )
    problems, epoch_notes = _check_epochs(config, order)
    raise_problems(config.path, problems)
    notes += _note_rounding(config, budget, phases) + epoch_notes + _note_intervals(config, budget)
    notes += _note_advice(config, budget.total_tokens)
    return ResolvedRecipe(budget=budget, schedule=schedule, order=order, notes=tuple(notes))


def _resolve_budget(config: RunConfig, layout: ParallelLayout, num_rows: int) -> Budget:
    """Return the batch and the number of steps. `num_rows` is the total over all sources."""
    sizes = resolve_batch(config, layout)
    last = sizes[-1]
    tokens, where = _choose_total_tokens(config, num_rows)
    ramp = place_stages(config, sizes, tokens) if len(sizes) > 1 else ()
    budget = Budget(
        seq_length=config.cpt.seq_length,
        global_batch_size=last.global_batch_size,
        micro_batch_size=last.micro_batch_size,
        num_accumulation_steps=last.num_accumulation_steps,
        total_steps=0,
        ramp=ramp,
    )
    try:
        total_steps = budget.count_steps_within(tokens)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return dataclasses.replace(budget, total_steps=total_steps)


def _choose_total_tokens(config: RunConfig, num_rows: int) -> tuple[int, str]:
    """Return the run's tokens and the key that sets them: token budget, phases, or epochs over the data."""
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
    """Return the schedule (None if MindFormers' schedule is used) and notes about it."""
    schedule = config.cpt.schedule
    where = f"{config.locate('cpt', 'schedule')}: cpt.schedule"
    has_section = config.mindformers.get("lr_schedule") is not None
    if schedule is None:
        if not has_section:
            raise ConfigError(f"{config.path}: no learning rate; add cpt.schedule with peak_lr")
        return None, []
    if has_section:
        raise ConfigError(f"{where} and lr_schedule ({config.locate('lr_schedule')}) are both set; keep one")
    num_epochs = budget.count_rows(budget.total_steps) / num_rows
    try:
        return resolve_schedule(
            schedule,
            total_steps=budget.total_steps,
            tokens_per_step=budget.tokens_per_step,
            num_epochs=num_epochs,
            count_warmup_steps=budget.count_steps_within,
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
            rows = budget.count_rows(stop) - budget.count_rows(first)
            shares = resolve_blend(config, phase, num_rows, rows)
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
        uses_all = len(num_rows) == 1 or not config.cpt.phases or bool(phase.upweight)
        used |= set(phase.blend) or (set(num_rows) if uses_all else set())
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
        return budget.count_steps_within(phase.tokens, first_step=first)
    if until is not None and until.tokens is not None:
        return budget.count_steps_within(until.tokens)
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


def _check_epochs(config: RunConfig, order: SampleOrder) -> tuple[list[str], list[str]]:
    """Return a problem for each source that exceeds `max_epochs`, and warnings about high epoch counts."""
    problems, notes = [], []
    for name, drawn in count_rows_of_run(order).items():
        epochs = drawn / order.num_rows[name]
        limit = config.cpt.sources.get(name, SourceConfig()).max_epochs
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
    """Return a problem for each validation interval longer than the run, and each patience that cannot run out."""
    cpt = config.cpt
    interval = cpt.validation.every if cpt.validation is not None else None
    if interval is not None and interval.to_steps(budget.tokens_per_step) > budget.total_steps:
        return [
            f"{config.locate('cpt', 'validation', 'every')}: cpt.validation.every: {interval} is longer than the run "
            f"of {budget.total_steps} steps ({format_count(budget.total_tokens)} tokens); lower it, or remove the key "
            "to validate only at the end"
        ]
    return _find_patience_problems(config, budget)


def _note_intervals(config: RunConfig, budget: Budget) -> list[str]:
    """Return a warning if the first checkpoint interval is longer than the run."""
    every = config.cpt.checkpoint.every
    if every is None or every.to_steps(budget.tokens_per_step) <= budget.total_steps:
        return []
    return [
        f"warning: {config.locate('cpt', 'checkpoint', 'every')}: cpt.checkpoint.every: {every} is longer than the run "
        f"of {budget.total_steps} steps ({format_count(budget.total_tokens)} tokens); the only checkpoint is saved at "
        "its end"
    ]


def _find_patience_problems(config: RunConfig, budget: Budget) -> list[str]:
    """Return a problem for each `patience` that cannot run out before the run ends."""
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
        # The validation after `every` steps is the first that can exceed its limit.
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
    requested: list[tuple[str, int | None, int, int]] = [
        ("train_tokens", config.cpt.train_tokens, 0, budget.total_steps)
    ]
    if config.cpt.schedule is not None and config.cpt.schedule.warmup_tokens:
        requested.append(("warmup_tokens", config.cpt.schedule.warmup_tokens, 0, budget.warmup_steps))
    for given, phase in zip(config.cpt.phases, phases, strict=False):
        requested.append((f"tokens of phase {phase.name}", given.tokens, phase.first_step, phase.stop_step))
        if given.until is not None:
            requested.append((f"end of phase {phase.name}", given.until.tokens, 0, phase.stop_step))
    notes = []
    for name, tokens, first, stop in requested:
        trained = budget.count_tokens(stop) - budget.count_tokens(first)
        if tokens is not None and tokens != trained:
            notes.append(f"rounded: {name} {tokens:,} → {stop - first:,} steps = {trained:,} tokens")
    return notes


def _note_advice(config: RunConfig, total_tokens: int) -> list[str]:
    """Return a line for each setting without effect, and warnings from the literature."""
    notes = []
    if total_tokens < FEW_TOKENS and config.initial_weights not in (None, "random"):
        notes.append(
            f"warning: {format_count(total_tokens)} tokens: below about {format_count(FEW_TOKENS)}, supervised "
            "fine-tuning may work better than continued pretraining (docs/recipes.md)"
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
    notes += _note_positions(config.mindformers["model"]["model_config"], config.cpt.seq_length)
    return notes


def _note_positions(model: Mapping[str, Any], seq_length: int) -> list[str]:
    """Return a warning for each length of the model that the rows exceed."""
    notes = []
    longest, scaling = model.get("max_position_embeddings"), read_rope(model).scaling
    if longest is not None and seq_length > longest:
        notes.append(
            f"warning: cpt.seq_length {seq_length} is more than model.model_config.max_position_embeddings "
            f"({longest}), which is copied to an exported config.json; raise max_position_embeddings, and rope theta "
            "or scaling if needed"
        )
    if isinstance(scaling, YarnScaling) and seq_length > scaling.max_length:
        notes.append(
            f"warning: cpt.seq_length {seq_length} is more than the {scaling.max_length} tokens for which YaRN scales "
            f"the rotary frequencies (factor {scaling.factor:g} x original_max_position_embeddings "
            f"{scaling.original_max_position_embeddings:g}); raise rope_scaling.factor"
        )
    return notes
