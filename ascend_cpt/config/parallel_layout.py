"""A configuration's parallel layout on a given number of devices."""

from __future__ import annotations

from dataclasses import dataclass

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ParallelLayout:
    """A run's parallel sizes, whose product is `world_size`."""

    world_size: int
    data_parallel: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context_parallel: int = 1
    expert_parallel: int = 1
    """Not part of the product: the experts are split over ranks of data and tensor parallelism."""


def derive_layout(config: RunConfig, world_size: int) -> ParallelLayout:
    """Return the layout of `parallel_config` on `world_size` devices, deriving data_parallel if it is not set.

    Raises:
        ConfigError: the product of the sizes is not the world size, or a CPU run uses more than data parallelism.
    """
    section = config.mindformers.get("parallel_config") or {}
    tensor = section.get("model_parallel") or 1
    pipeline = section.get("pipeline_stage") or 1
    context = section.get("context_parallel") or 1
    expert = section.get("expert_parallel") or 1
    data = section.get("data_parallel")
    where = config.locate("parallel_config")
    if uses_cpu(config):
        if (tensor, pipeline, context, expert) != (1, 1, 1, 1):
            raise ConfigError(
                f"{where}: parallel_config: a CPU run supports only data parallelism; set model_parallel, "
                "pipeline_stage, context_parallel and expert_parallel to 1 "
                f"(got {tensor}, {pipeline}, {context}, {expert})"
            )
        return ParallelLayout(world_size=world_size, data_parallel=world_size)
    inner = tensor * pipeline * context
    if data is None:
        if world_size % inner:
            raise ConfigError(
                f"{where}: parallel_config: model_parallel {tensor} × pipeline_stage {pipeline} × context_parallel "
                f"{context} = {inner} does not divide the number of devices of this launch, {world_size}"
            )
        data = world_size // inner
    if data * inner != world_size:
        raise ConfigError(
            f"{where}: parallel_config: data_parallel {data} × model_parallel {tensor} × pipeline_stage {pipeline} × "
            f"context_parallel {context} = {data * inner}, but the launch has {world_size} "
            f"device{'' if world_size == 1 else 's'}"
        )
    return ParallelLayout(
        world_size=world_size,
        data_parallel=data,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        context_parallel=context,
        expert_parallel=expert,
    )


def uses_cpu(config: RunConfig) -> bool:
    """Return whether the configuration trains on the CPU."""
    return str((config.mindformers.get("context") or {}).get("device_target", "Ascend")).upper() == "CPU"
