"""Learning-rate schedules as one pure function of the step: what the network looks up and what is reported is this."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

KINDS = ("cosine", "linear", "constant")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A linear warmup from 0 to `peak_lr` in `warmup_steps`, then `kind` to `final_lr` at the last step."""

    kind: str
    peak_lr: float
    final_lr: float
    warmup_steps: int
    total_steps: int

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: unknown kind, rates out of order, or a warmup that does not fit into the run.
        """
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if not (math.isfinite(self.peak_lr) and self.peak_lr > 0):
            raise ValueError(f"peak_lr must be above 0, got {self.peak_lr}")
        if not 0 <= self.final_lr <= self.peak_lr:
            raise ValueError(f"final_lr must lie between 0 and peak_lr {self.peak_lr}, got {self.final_lr}")
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(f"the warmup of {self.warmup_steps} steps does not fit into {self.total_steps} steps")


def learning_rate_at(schedule: Schedule, step: int) -> float:
    """Return the learning rate of step `step` (0 is the first); past the end the last rate holds.

    Warmup: peak × (step + 1) / warmup_steps, so that no step is lost to a rate of 0 and the peak is reached exactly.
    Cosine: final + (peak - final) × (1 + cos(π t)) / 2 with t from 0 at the end of the warmup to 1 at the last step
    (Loshchilov and Hutter, arXiv 1608.03983, one period).
    """
    if step < schedule.warmup_steps:
        return schedule.peak_lr * (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return schedule.peak_lr
    num_decay_steps = schedule.total_steps - 1 - schedule.warmup_steps
    progress = min(1.0, (step - schedule.warmup_steps) / num_decay_steps) if num_decay_steps else 1.0
    share = (1 + math.cos(math.pi * progress)) / 2 if schedule.kind == "cosine" else 1 - progress
    return schedule.final_lr + (schedule.peak_lr - schedule.final_lr) * share


def tabulate(schedule: Schedule) -> np.ndarray:
    """Return the learning rate of every step, float32 of shape (total_steps,)."""
    return np.array([learning_rate_at(schedule, step) for step in range(schedule.total_steps)], dtype=np.float32)
