"""One line of a run's history, as a plain record."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What happened in an optimizer step. `step` counts from 1; rates are of the whole cluster."""

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens: int
    step_time_s: float
    tokens_per_s: float
    overflow: bool = False


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """Mean loss (nats per token) over the labels of a named validation set after `step` steps."""

    step: int
    name: str
    loss: float
    num_labels: int
