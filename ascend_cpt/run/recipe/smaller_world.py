"""A run on fewer devices than it was started on, with the same global batch."""

from __future__ import annotations

import copy
import dataclasses
import math

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.parallel_layout import derive_layout, uses_cpu
from ascend_cpt.run.recipe.batch import resolve_batch


def keep_global_batch(config: RunConfig, *, world_size: int, full_world_size: int) -> RunConfig:
    """Return the configuration for `world_size` devices of a run that was started on `full_world_size`.

    The global batch stays the same, and tensor, pipeline and context parallelism too. The data-parallel size and the
    number of micro batches follow from the number of devices. A micro batch has at most as many rows as on all devices,
    so that it fits the memory, except on a CPU, where gradients cannot be accumulated.

    Raises:
        ConfigError: when the configuration does not fit the number of devices.
    """
    if world_size == full_world_size:
        return config
    full = derive_layout(config, full_world_size)
    stages = resolve_batch(config, full)
    sections = copy.deepcopy(config.mindformers)
    parallel = sections.get("parallel_config") or {}
    runner = sections.get("runner_config") or {}
    parallel.pop("data_parallel", None)
    parallel.pop("micro_batch_num", None)
    runner.pop("gradient_accumulation_steps", None)
    runner.pop("batch_size", None)
    smaller = dataclasses.replace(config, mindformers=sections)
    layout = derive_layout(smaller, world_size)
    # Where the rows cannot be divided evenly, the check of the batch explains it.
    rows = math.gcd(*(stage.global_batch_size // layout.data_parallel for stage in stages))
    if not uses_cpu(config):
        most = min(stage.micro_batch_size for stage in stages)
        sections["runner_config"] = runner | {"batch_size": max(n for n in range(1, most + 1) if rows % n == 0)}
    if config.cpt.global_batch_size is None:
        cpt = dataclasses.replace(config.cpt, global_batch_size=stages[0].global_batch_size)
        smaller = dataclasses.replace(smaller, cpt=cpt)
    return smaller
