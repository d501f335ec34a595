"""Resolves `cpt.restart_phases`: phases of the same length, each with the whole schedule and its own row order."""

from __future__ import annotations

import dataclasses

from ascend_cpt.config.loader import RunConfig, raise_problems
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.recipe.budget import Budget
from ascend_cpt.recipe.phases import SampleOrder
from ascend_cpt.recipe.schedule import Schedule


def divide_budget(config: RunConfig, budget: Budget) -> Budget:
    """Return the budget of one phase.

    Raises:
        ConfigError: the phases cannot be runs of their own.
    """
    where = f"{config.locate('cpt', 'restart_phases')}: cpt.restart_phases"
    cpt, problems = config.cpt, []
    tokens = {phase.tokens for phase in cpt.phases}
    if not cpt.phases or None in tokens or len(tokens) > 1 or budget.total_steps % len(cpt.phases):
        problems.append(f"{where}: all phases need the same length; give every phase the same number of tokens")
    if budget.ramp or cpt.checkpoint.save:
        problems.append(f"{where}: needs cpt.checkpoint.save: False and a fixed cpt.global_batch_size")
    if not uses_cpu(config):
        problems.append(f"{where}: only on a CPU; start a run for each blend instead")
    raise_problems(config.path, problems)
    return dataclasses.replace(budget, total_steps=budget.total_steps // len(cpt.phases))


def repeat_schedule(schedule: Schedule, num_phases: int) -> Schedule:
    """Return the schedule of all phases, each of which has the given schedule."""
    return dataclasses.replace(schedule, segments=schedule.segments * num_phases)


def count_rows_of_run(order: SampleOrder) -> dict[str, int]:
    """Return the rows from each source in a run, or the most in any phase if every phase starts over."""
    if not order.restarts:
        return order.count(0, order.total_rows)
    counts = [
        order.count(order.first_position(phase.first_step), order.first_position(phase.stop_step))
        for phase in order.phases
    ]
    return {name: max(count[name] for count in counts) for name in order.num_rows}
