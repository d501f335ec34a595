"""Suggests layouts for a run. It suggests only layouts that the program accepts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.config.loader import RunConfig, load_config
from ascend_cpt.errors import ConfigError
from ascend_cpt.plan.case import TrainingCase
from ascend_cpt.plan.estimate import Estimate
from ascend_cpt.plan.report import to_record
from ascend_cpt.plan.search.clusters import NODE_COUNTS, find_cheapest, find_on, find_smallest, find_within
from ascend_cpt.plan.search.table import compute_gain, count_device_hours, render_table
from ascend_cpt.run.planning.assumed_run import resolve_without_data
from ascend_cpt.run.planning.changes import flatten, list_changes, render_changes, write_config
from ascend_cpt.run.planning.plan_run import Cluster, plan_config
from ascend_cpt.run.planning.training_case import build_case

OBJECTIVES = ("speed", "cost", "nodes")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What to search for."""

    objective: str = "speed"
    """`speed`: tokens per second on the given devices; `cost`: device hours; `nodes`: fewest nodes for a deadline."""
    days: float | None = None
    """Deadline of the run."""
    interleaves: bool = False
    """Also search interleaved pipeline stages."""


@dataclass(frozen=True, kw_only=True)
class Suggestions:
    """The plans that were found."""

    path: Path
    overrides: Mapping[str, Any]
    given: Estimate | None
    """The configuration as given; None if its layout is impossible on these devices."""
    problem: str
    """Why that layout is impossible; otherwise empty."""
    plans: tuple[Estimate, ...]
    changes: tuple[Mapping[str, Any], ...]
    """What each plan changes in the configuration."""
    by_cost: bool
    note: str
    """A further line for the user, or empty."""

    def render(self) -> str:
        """Render the table of plans and the first plan's configuration."""
        if not self.plans:
            head = [self.problem, self.note]
            if self.given is not None:
                head.insert(0, render_table(self.given, ()))
            return "\n".join(line for line in head if line)
        lines = [
            *([f"the given layout is not used: {self.problem}", ""] if self.problem else []),
            render_table(self.given, self.plans, by_cost=self.by_cost),
            "",
            *([self.note] if self.note else []),
            "configuration of the first:",
            *(f"  {line}" for line in render_changes(self.changes[0]).splitlines()),
        ]
        return "\n".join(lines)

    def to_records(self) -> list[dict[str, Any]]:
        """Return the plans as JSON values, best first."""
        return [
            {
                **to_record(plan),
                "gain": compute_gain(self.given, plan, by_cost=self.by_cost),
                "device_hours": count_device_hours(plan),
                "changes": dict(changes),
            }
            for plan, changes in zip(self.plans, self.changes, strict=True)
        ]

    def write(self, target: Path) -> str:
        """Write the first plan's configuration, or the given one if none is better. Return what was written.

        Raises:
            ConfigError: when nothing fits, or the file cannot be written.
        """
        if not self.plans and (self.given is None or not self.given.fits):
            raise ConfigError(f"--write {target}: {self.note or 'no layout fits on these devices'}")
        changes = self.changes[0] if self.plans else {}
        plan = self.plans[0] if self.plans else self.given
        assert plan is not None
        what = (
            f"{plan.case.layout.world_size} devices, planned {plan.time.tokens_per_device_s:,.0f} tokens/s per device"
        )
        write_config(target, self.path, {**flatten(self.overrides), **changes}, f"Suggested by tools/plan.py: {what}.")
        return f"{target}: {what}"


def suggest_runs(path: Path, overrides: Mapping[str, Any], cluster: Cluster, goal: Goal) -> Suggestions:
    """Return suggestions for the run of a configuration.

    Raises:
        ConfigError: when the configuration is wrong apart from its layout, or `goal` needs a length that is unknown.
    """
    config = load_config(path, dict(overrides))
    # When several node counts are searched, the given layout is compared on the devices it was made for.
    own = cluster if goal.objective == "speed" else dataclasses.replace(cluster, num_nodes=None)
    given, problem = _plan_given(config, own)
    start = given or _plan_anything(config, overrides, cluster, problem)
    can_interleave = goal.interleaves or start.case.interleave > 1
    start = dataclasses.replace(start, case=dataclasses.replace(start.case, can_interleave=can_interleave))
    if goal.objective != "speed" and start.total_tokens is None:
        raise ConfigError(
            f"--objective {goal.objective}: the length of the run is unknown without its datasets; add --set "
            "cpt.train_tokens=10B"
        )
    accepts = _Check(path, overrides, config)
    world = start.case.layout.world_size
    nodes = cluster.num_nodes or -(-world // cluster.devices_per_node)
    plans, note = _search(start, accepts, goal, nodes, has_limit=cluster.num_nodes is not None)
    by_cost = goal.objective == "cost"
    plans = [plan for plan in plans if goal.objective == "nodes" or _is_better(given, plan, by_cost=by_cost)]
    if not plans and given is not None and given.fits and not note:
        note = "none of the layouts found is better than the given one"
    return Suggestions(
        path=path,
        overrides=overrides,
        given=given,
        problem=problem,
        plans=tuple(plans),
        changes=tuple(list_changes(plan.case, config) for plan in plans),
        by_cost=by_cost,
        note=note,
    )


def _is_better(given: Estimate | None, plan: Estimate, *, by_cost: bool) -> bool:
    gain = compute_gain(given, plan, by_cost=by_cost)
    return gain is None or gain > 0


def _search(start: Estimate, accepts: _Check, goal: Goal, nodes: int, *, has_limit: bool) -> tuple[list[Estimate], str]:
    """Return the plans, best first, and a note if there are none."""
    if goal.objective == "speed":
        plans = find_on(start, accepts, nodes, max_layouts=10)
        if plans:
            return plans, ""
        smallest = find_smallest(start, accepts, more_than=nodes)
        found = "and none on up to 128 nodes" if smallest is None else f"{smallest} nodes suffice (--nodes {smallest})"
        return [], f"no layout fits on {nodes} node{'s' if nodes > 1 else ''}; {found}"
    most = nodes if has_limit else NODE_COUNTS[-1]
    if goal.objective == "cost":
        plans = find_cheapest(start, accepts, max_nodes=most, days=goal.days)
    else:
        assert goal.days is not None
        plans = find_within(start, accepts, max_nodes=most, days=goal.days)
    deadline = "" if goal.days is None else f" finishes within {goal.days:g} days"
    return plans, "" if plans else f"no layout on up to {most} node{'s' if most > 1 else ''}{deadline or ' fits'}"


def _plan_given(config: RunConfig, cluster: Cluster) -> tuple[Estimate | None, str]:
    try:
        return plan_config(config, cluster)[1], ""
    except ConfigError as error:
        return None, str(error)


def _plan_anything(config: RunConfig, overrides: Mapping[str, Any], cluster: Cluster, problem: str) -> Estimate:
    """Return a plan with any layout that the program accepts, to start from.

    Raises:
        ConfigError: the given layout's problem, if no other layout is accepted.
    """
    if cluster.num_nodes is None:
        raise ConfigError(problem)
    world = cluster.num_nodes * cluster.devices_per_node
    for tensor in (8, 4, 2, 1):
        for stages in (1, 2, 4, 8, 16):
            changes = {
                "parallel_config.data_parallel": max(1, world // tensor // stages),
                "parallel_config.model_parallel": tensor,
                "parallel_config.pipeline_stage": stages,
                "parallel_config.context_parallel": 1,
                "parallel_config.expert_parallel": 1,
                "parallel_config.use_seq_parallel": tensor > 1,
                "runner_config.batch_size": 1,
                "recompute_config.recompute": True,
                "model.model_config.offset": 0,
                "model.model_config.pp_interleave_num": 1,
            }
            try:
                loaded = load_config(config.path, {**flatten(overrides), **changes})
                return plan_config(loaded, cluster)[1]
            except ConfigError:
                continue
    raise ConfigError(problem)


@dataclass(frozen=True)
class _Check:
    """Checks that the program accepts a case and plans it as the search did."""

    path: Path
    overrides: Mapping[str, Any]
    config: RunConfig

    def __call__(self, case: TrainingCase) -> bool:
        changes = list_changes(case, self.config)
        try:
            config = load_config(self.path, {**flatten(self.overrides), **changes})
            planned = build_case(resolve_without_data(config, case.layout.world_size))
        except ConfigError:
            return False
        # Without accumulation or sharding, some switches have no effect and are allowed to differ.
        return dataclasses.replace(planned, parameters=case.parameters, can_interleave=case.can_interleave) == case
