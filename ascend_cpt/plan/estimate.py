"""The plan of a run: memory, time and disk space."""

from __future__ import annotations

from dataclasses import dataclass

from ascend_cpt.plan.case import GIGABYTE, TrainingCase
from ascend_cpt.plan.checkpoints import Checkpoints
from ascend_cpt.plan.machines import Machine
from ascend_cpt.plan.memory import StageMemory, estimate_memory
from ascend_cpt.plan.speed.throughput import StepTime, estimate_step

# Assumptions, not measured on an NPU. On the simulated device, fragmentation made MindSpore's pool 3-12% larger than
# the allocated memory, less for larger models.
FRAGMENTATION = 0.05
WORKSPACE_BYTES = GIGABYTE
# Memory outside MindSpore's pool. MindFormers' configurations for 64 GB devices give the pool up to 60 GB.
OUTSIDE_BYTES = 4 * GIGABYTE


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Memory limits of a device, in bytes."""

    device_bytes: int
    pool_bytes: int
    """`context.max_device_memory`: the limit of MindSpore's pool."""

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
    """None if the budget is given in epochs and the datasets are not available."""
    checkpoints: Checkpoints

    @property
    def fits(self) -> bool:
        """Whether every stage's peak plus its reserve fits in the usable memory."""
        return all(needed_bytes(stage) <= self.limits.usable_bytes for stage in self.stages)

    @property
    def days(self) -> float | None:
        return None if self.total_tokens is None else self.time.count_days(self.total_tokens)


def needed_bytes(stage: StageMemory) -> int:
    """Return a stage's peak plus the reserve for fragmentation and kernel workspaces."""
    return stage.peak_bytes + reserve_bytes(stage)


def reserve_bytes(stage: StageMemory) -> int:
    """Return the reserve for fragmentation and kernel workspaces."""
    return int(stage.peak_bytes * FRAGMENTATION) + WORKSPACE_BYTES


def estimate(
    case: TrainingCase,
    machine: Machine,
    limits: Limits,
    *,
    total_tokens: int | None,
    checkpoints: Checkpoints,
) -> Estimate:
    """Return the plan for a run of `total_tokens`."""
    return Estimate(
        case=case,
        machine=machine,
        limits=limits,
        stages=estimate_memory(case),
        time=estimate_step(case, machine, machine.efficiency),
        total_tokens=total_tokens,
        checkpoints=checkpoints,
    )
