"""Resolves the user's run with whichever of its datasets and start weights are on this machine."""

from __future__ import annotations

from pathlib import Path

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.errors import ConfigError
from ascend_cpt.rehearsal.dataset import has_dataset
from ascend_cpt.run.checks.datasets import VALIDATION
from ascend_cpt.run.planning.assumed_run import choose_world_size, resolve_without_data
from ascend_cpt.run.resolve import open_datasets, resolve
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.weights.hf_folder import is_hf_folder, open_checked


def resolve_user_run(config: RunConfig, num_nodes: int | None, devices_per_node: int) -> ResolvedRun:
    """Resolve a run for Ascend. Datasets and start weights on this machine are checked against the run.

    Args:
        config: The user's configuration.
        num_nodes: Number of nodes in the cluster, or None for as many as the layout needs.
        devices_per_node: Number of devices per node in the cluster.

    Raises:
        CptError: when the configuration is for a CPU or cannot be trained, or its data or weights do not fit.
    """
    if uses_cpu(config):
        raise ConfigError(
            f"{config.path}: its device_target is CPU; run it directly, or give a configuration for Ascend"
        )
    world_size = choose_world_size(config, num_nodes, devices_per_node)
    sources, sets = config.cpt.sources, config.cpt.validation.sets if config.cpt.validation else {}
    paths = [entry.path for entry in sources.values()] + [entry.path for entry in sets.values()]
    if paths and all(paths) and all(map(has_dataset, paths)):
        run = resolve(
            config,
            world_size=world_size,
            sources=open_datasets(config, "cpt.sources", sources),
            validation=open_datasets(config, f"cpt.{VALIDATION}", sets),
        )
    else:
        run = resolve_without_data(config, world_size)
    start = config.initial_weights
    if start and is_hf_folder(Path(start)):
        open_checked(Path(start), run.model)
    return run
