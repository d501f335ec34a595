"""The whole plan of a run: does it fit, how long does it take, how much does it write."""

from __future__ import annotations

from dataclasses import dataclass

from ascend_cpt.plan.case import GIGABYTE, TrainingCase
from ascend_cpt.plan.machines import Machine
from ascend_cpt.plan.memory import ADAM_STATES, FLOAT32_BYTES, StageMemory, estimate_memory
from ascend_cpt.plan.throughput import StepTime, estimate_step

# Assumed, not measured, as no NPU was at hand. On the simulated device MindSpore's pool was 3 to 12 % larger than what
# it held, the less the larger the model.
FRAGMENTS = 0.05
WORKSPACE_BYTES = GIGABYTE
# What must stay outside of MindSpore's pool: upstream's configurations of 64 GB devices give the pool up to 60 GB.
OUTSIDE_BYTES = 4 * GIGABYTE


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What there is of memory on a device, in bytes."""

    device_bytes: int
    pool_bytes: int
    """`context.max_device_memory`: what MindSpore may take."""

    @property
    def usable_bytes(self) -> int:
        return min(self.pool_bytes, self.device_bytes - OUTSIDE_BYTES)


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """What a run writes."""

    num_bytes: int
    """One checkpoint: weights and optimizer states, each once."""
    num_kept: int
    num_written: int

    @property
    def disk_bytes(self) -> int:
        """A new checkpoint is written before an old one is removed."""
        return self.num_bytes * min(self.num_written, self.num_kept + 1)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The plan of a run."""

    case: TrainingCase
    machine: Machine
    limits: Limits
    stages: tuple[StageMemory, ...]
    time: StepTime
    total_tokens: int | None
    """None where the budget is a number of epochs over datasets that are not here."""
    checkpoints: Checkpoints

    @property
    def fits(self) -> bool:
        """Whether every stage has room for its peak and the reserve."""
        return all(needed_bytes(stage) <= self.limits.usable_bytes for stage in self.stages)

    @property
    def days(self) -> float | None:
        return None if self.total_tokens is None else self.time.count_days(self.total_tokens)


def needed_bytes(stage: StageMemory) -> int:
    """Return the peak of a stage with the reserve for fragments and for the workspaces of kernels."""
    return stage.peak_bytes + reserve_bytes(stage)


def reserve_bytes(stage: StageMemory) -> int:
    """Return what is kept free beside the peak."""
    return int(stage.peak_bytes * FRAGMENTS) + WORKSPACE_BYTES


def estimate(
    case: TrainingCase,
    machine: Machine,
    limits: Limits,
    *,
    total_tokens: int | None,
    num_kept: int = 1,
    save_every_steps: int | None = None,
) -> Estimate:
    """Return the plan of a run of `total_tokens`; `num_kept` 0 keeps all checkpoints."""
    if total_tokens is None:
        num_written = num_kept + 1  # as many as there may be at once
    else:
        num_steps = max(1, total_tokens // case.tokens_per_step)
        num_written = 1 if save_every_steps is None else -(-num_steps // save_every_steps)
    element_bytes = case.param_bytes + ADAM_STATES * FLOAT32_BYTES
    return Estimate(
        case=case,
        machine=machine,
        limits=limits,
        stages=estimate_memory(case),
        time=estimate_step(case, machine, machine.efficiency),
        total_tokens=total_tokens,
        checkpoints=Checkpoints(
            num_bytes=case.model.num_parameters * element_bytes,
            num_kept=num_kept or num_written,
            num_written=num_written,
        ),
    )
