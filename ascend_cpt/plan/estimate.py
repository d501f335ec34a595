"""The whole plan of a run: does it fit, how long does it take, how much does it write."""

from __future__ import annotations

from dataclasses import dataclass

from ascend_cpt.plan.case import GIGABYTE, TrainingCase
from ascend_cpt.plan.checkpoints import Checkpoints
from ascend_cpt.plan.machines import Machine
from ascend_cpt.plan.memory import StageMemory, estimate_memory
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
    checkpoints: Checkpoints,
) -> Estimate:
    """Return the plan of a run of `total_tokens`."""
    return Estimate(
        case=case,
        machine=machine,
        limits=limits,
        stages=estimate_memory(case),
        time=estimate_step(case, machine, machine.efficiency),
        total_tokens=total_tokens,
        checkpoints=checkpoints,
    )
