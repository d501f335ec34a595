"""Plans the run of a configuration file."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.config.loader import RunConfig, load_config
from ascend_cpt.errors import ConfigError
from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.plan.estimate import Estimate, Limits, estimate
from ascend_cpt.plan.machines import Machine, find_machine
from ascend_cpt.plan.speed.efficiency import Efficiency, ErrorBand
from ascend_cpt.run.planning.assumed_run import choose_world_size, has_token_budget, reject_cpu, resolve_without_data
from ascend_cpt.run.planning.training_case import build_case, count_checkpoints, find_unplanned
from ascend_cpt.run.resolved_run import ResolvedRun


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The cluster described on the command line."""

    num_nodes: int | None
    devices_per_node: int
    device: str
    device_bytes: int
    efficiency: Efficiency | None = None
    """Measured on this kind of machine; None uses the published one."""
    band: ErrorBand | None = None
    """Error band of the measured efficiency."""

    def find_machine(self) -> Machine:
        """Return the machine with its number of devices per node and its measured efficiency.

        Raises:
            ConfigError: for an unknown device.
        """
        machine = dataclasses.replace(find_machine(self.device), devices_per_node=self.devices_per_node)
        return dataclasses.replace(
            machine, efficiency=self.efficiency or machine.efficiency, band=self.band or machine.band
        )


_POOL = re.compile(r"^\s*([0-9.]+)\s*GB\s*$", re.IGNORECASE)


def plan_run(path: Path, overrides: dict[str, Any], cluster: Cluster) -> tuple[ResolvedRun, Estimate]:
    """Resolve a configuration and return the run with its plan.

    Raises:
        ConfigError: naming every problem.
    """
    return plan_config(load_config(path, overrides), cluster)


def plan_config(config: RunConfig, cluster: Cluster) -> tuple[ResolvedRun, Estimate]:
    """Resolve a loaded configuration and return the run with its plan.

    Raises:
        ConfigError: naming every problem.
    """
    reject_cpu(config)
    world_size = choose_world_size(config, cluster.num_nodes, cluster.devices_per_node)
    run = resolve_without_data(config, world_size)
    if (unplanned := find_unplanned(config.mindformers)) is not None:
        key, problem = unplanned
        raise ConfigError(f"{config.locate(*key.split('.'))}: {problem}; remove it for planning")
    machine = cluster.find_machine()
    is_length_known = has_token_budget(config)
    return run, estimate(
        build_case(run),
        machine,
        Limits(device_bytes=cluster.device_bytes, pool_bytes=_read_pool_bytes(run, cluster)),
        total_tokens=run.budget.total_tokens if is_length_known else None,
        checkpoints=count_checkpoints(run, run.budget.total_steps if is_length_known else None),
    )


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
