"""Plans the run of a configuration file."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.config.loader import load_config
from ascend_cpt.errors import ConfigError
from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.plan.estimate import Estimate, Limits, estimate
from ascend_cpt.plan.machines import find_machine
from ascend_cpt.plan.suggest import suggest
from ascend_cpt.run.planning.assumed_run import choose_world_size, has_token_budget, resolve_without_data
from ascend_cpt.run.planning.training_case import build_case, count_checkpoints
from ascend_cpt.run.resolved_run import ResolvedRun


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The cluster of the command line."""

    num_nodes: int | None
    devices_per_node: int
    device: str
    device_bytes: int


_POOL = re.compile(r"^\s*([0-9.]+)\s*GB\s*$", re.IGNORECASE)


def plan_run(path: Path, overrides: dict[str, Any], cluster: Cluster) -> tuple[ResolvedRun, Estimate]:
    """Return the resolved run of a configuration and its plan.

    Raises:
        ConfigError: naming every problem.
    """
    config = load_config(path, overrides)
    world_size = choose_world_size(config, cluster.num_nodes, cluster.devices_per_node)
    run = resolve_without_data(config, world_size)
    machine = dataclasses.replace(find_machine(cluster.device), devices_per_node=cluster.devices_per_node)
    is_length_known = has_token_budget(config)
    return run, estimate(
        build_case(run),
        machine,
        Limits(device_bytes=cluster.device_bytes, pool_bytes=_read_pool_bytes(run, cluster)),
        total_tokens=run.budget.total_tokens if is_length_known else None,
        checkpoints=count_checkpoints(run, run.budget.total_steps if is_length_known else None),
    )


def suggest_runs(run: ResolvedRun, plan: Estimate) -> list[Estimate]:
    """Return plans of the same run on the same devices that fit, fastest first."""
    return suggest(plan)


def _read_pool_bytes(run: ResolvedRun, cluster: Cluster) -> int:
    """Return `context.max_device_memory` in bytes, or the device's memory if it is not set."""
    given = (run.config.mindformers.get("context") or {}).get("max_device_memory")
    if given is None:
        return cluster.device_bytes
    match = _POOL.match(str(given))
    if match is None:
        raise ConfigError(
            f"{run.config.locate('context', 'max_device_memory')}: context.max_device_memory: expected a size such as "
            f"58GB, got {given!r}"
        )
    return int(float(match[1]) * GIGABYTE)
