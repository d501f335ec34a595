"""Resolves the batch of a run: rows per step, micro batches and accumulation, or the stages of a batch ramp."""

from __future__ import annotations

import dataclasses

from ascend_cpt.config.loader import RunConfig, raise_problems
from ascend_cpt.config.parallel_layout import ParallelLayout, uses_cpu
from ascend_cpt.config.schema import BatchStageConfig
from ascend_cpt.config.values import format_count
from ascend_cpt.errors import ConfigError
from ascend_cpt.recipe.budget import BatchStage, split_global_batch


def resolve_batch(config: RunConfig, layout: ParallelLayout) -> tuple[BatchStage, ...]:
    """Return the run's batch stages, or a single one without a ramp. First steps are not known yet, so they are 0.

    Raises:
        ConfigError: naming every problem.
    """
    given = config.cpt.global_batch_size
    if isinstance(given, tuple):
        _check_ramp(config, given)
        keys = [("cpt", "global_batch_size", str(index), "size") for index in range(len(given))]
        return tuple(_split(config, layout, one.size, keys[index]) for index, one in enumerate(given))
    size = given if given is not None else _derive_global_batch(config, layout)
    return (_split(config, layout, size, ("cpt", "global_batch_size")),)


def place_stages(config: RunConfig, sizes: tuple[BatchStage, ...], total_tokens: int) -> tuple[BatchStage, ...]:
    """Return a ramp's stages with their first steps. Each stage ends at the last whole step before `until`.

    Raises:
        ConfigError: a stage has no step, or ends at or after the end of the run.
    """
    given = config.cpt.global_batch_size
    assert isinstance(given, tuple)
    placed: list[BatchStage] = []
    step, tokens = 0, 0
    for index, (stage, size) in enumerate(zip(given, sizes, strict=True)):
        placed.append(dataclasses.replace(size, first_step=step))
        until = total_tokens if stage.until is None else stage.until
        tokens_per_step = size.global_batch_size * config.cpt.seq_length
        steps = (until - tokens) // tokens_per_step
        where = f"{config.locate('cpt', 'global_batch_size', str(index))}: cpt.global_batch_size[{index}]"
        if stage.until is not None and stage.until >= total_tokens:
            raise ConfigError(
                f"{where}.until: {format_count(stage.until)} tokens is not before the end of the run at "
                f"{format_count(total_tokens)}; lower it, or remove the later stages"
            )
        if steps < 1:
            raise ConfigError(
                f"{where}: has less than one step of {tokens_per_step} tokens; raise its until to at least "
                f"{tokens + tokens_per_step}"
            )
        step, tokens = step + steps, tokens + steps * tokens_per_step
    return tuple(placed)


def _check_ramp(config: RunConfig, stages: tuple[BatchStageConfig, ...]) -> None:
    where = f"{config.locate('cpt', 'global_batch_size')}: cpt.global_batch_size"
    problems = []
    if len(stages) < 2:
        problems.append(f"{where}: a ramp has at least two stages; give a number for one size")
    for index, stage in enumerate(stages):
        is_last = index == len(stages) - 1
        if (stage.until is None) != is_last:
            words = "the last stage lasts until the end of the run; remove until" if is_last else "has no until; add it"
            problems.append(f"{where}[{index}]: {words}")
    ends = [stage.until for stage in stages if stage.until is not None]
    if ends != sorted(set(ends)):
        problems.append(f"{where}: each until must be above the one before it, got {', '.join(map(str, ends))}")
    schedule = config.cpt.schedule
    if schedule is not None and schedule.batch_scaling is not None:
        problems.append(
            f"{config.locate('cpt', 'schedule', 'batch_scaling')}: cpt.schedule.batch_scaling: not possible with a "
            "batch ramp, which has no single batch size; remove it and set peak_lr"
        )
    raise_problems(config.path, problems)


def _derive_global_batch(config: RunConfig, layout: ParallelLayout) -> int:
    """Return batch_size × data parallel × accumulation steps.

    Raises:
        ConfigError: there is no `runner_config.batch_size`.
    """
    rows = (config.mindformers.get("runner_config") or {}).get("batch_size")
    if rows is None:
        raise ConfigError(
            f"{config.locate('cpt')}: cpt.global_batch_size: missing; set the rows per step over all devices, or set "
            "runner_config.batch_size, the rows of a micro batch of one device"
        )
    return int(rows) * layout.data_parallel * int(_find_accumulation(config, layout) or 1)


def _find_accumulation(config: RunConfig, layout: ParallelLayout) -> int | None:
    """Return the configured micro batches per step: MindFormers' `micro_batch_num` if there are pipeline stages."""
    accumulation: int | None = (config.mindformers.get("runner_config") or {}).get("gradient_accumulation_steps")
    if layout.pipeline_parallel > 1:
        accumulation = (config.mindformers.get("parallel_config") or {}).get("micro_batch_num", accumulation)
    return accumulation


def _split(config: RunConfig, layout: ParallelLayout, size: int, keys: tuple[str, ...]) -> BatchStage:
    """Return the rows per micro batch and the micro batches per step for a step of `size` rows.

    Raises:
        ConfigError: naming every problem.
    """
    problems: list[str] = []
    where = config.locate(*keys)
    is_ramp = len(keys) > 2
    # In a ramp, the micro batch keeps its size and the number of micro batches changes, so it cannot be set.
    accumulation = None if is_ramp else _find_accumulation(config, layout)
    rows = (config.mindformers.get("runner_config") or {}).get("batch_size")
    if is_ramp and rows is None and not uses_cpu(config):
        raise ConfigError(
            f"{where}: a batch ramp changes the number of micro batches; set runner_config.batch_size, the rows of one"
        )
    try:
        micro, steps = split_global_batch(size, layout.data_parallel, rows, accumulation)
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
    return BatchStage(first_step=0, global_batch_size=size, micro_batch_size=micro, num_accumulation_steps=steps)
