"""Learning-rate schedules as pure functions of the step, for both training and reports.

A schedule is a sequence of segments, each from one rate to another.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("cosine", "linear", "constant", "wsd", "infinite")
WARMUP = "warmup"

_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "sqrt": lambda progress: 1 - math.sqrt(progress),
}
SHAPES = (*_SHAPES, "exponential")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """`num_steps` steps from `start_lr` to `end_lr`.

    A warmup has `end_lr` at its last step and is above `start_lr` at its first, so that no step has a rate of 0. Any
    other segment has `start_lr` at its first step and `end_lr` at its last (a single step has `end_lr`).

    Shapes, with t from 0 to 1 over the segment, as the remaining fraction of the change:
    linear 1 - t; cosine (1 + cos(π t)) / 2 (Loshchilov and Hutter, arXiv 1608.03983, one period);
    sqrt 1 - √t (Hägele et al., arXiv 2405.18392); exponential start × (end / start)^t (Hu et al., arXiv 2404.06395).
    """

    name: str
    shape: str
    num_steps: int
    start_lr: float
    end_lr: float

    def __post_init__(self) -> None:
        """Check shape, rates and number of steps.

        Raises:
            ValueError: the shape is unknown, a rate is invalid, or there are no steps.
        """
        if self.shape not in SHAPES:
            raise ValueError(f"decay_shape {self.shape!r} is unknown; choose one of {', '.join(SHAPES)}")
        for rate in (self.start_lr, self.end_lr):
            if not (math.isfinite(rate) and rate >= 0):
                raise ValueError(f"a learning rate must be 0 or above, got {rate}")
        if self.shape == "exponential" and not (self.start_lr > 0 and self.end_lr > 0):
            raise ValueError(f"an exponential decay never reaches 0; set final_lr above 0, got {self.end_lr}")
        if self.num_steps < 1:
            raise ValueError(f"the {self.name} has no steps")

    def rate_at(self, index: int) -> float:
        """Return the learning rate at step `index` of the segment, counted from 0."""
        if self.name == WARMUP:
            return self.start_lr + (self.end_lr - self.start_lr) * (index + 1) / self.num_steps
        progress = index / (self.num_steps - 1) if self.num_steps > 1 else 1.0
        if self.shape == "exponential":
            return float(self.start_lr * (self.end_lr / self.start_lr) ** progress)
        return self.end_lr + (self.start_lr - self.end_lr) * _SHAPES[self.shape](progress)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A run's learning rate, as consecutive segments."""

    kind: str
    segments: tuple[Segment, ...]

    @property
    def total_steps(self) -> int:
        """Total number of steps in all segments."""
        return sum(segment.num_steps for segment in self.segments)

    @property
    def warmup_steps(self) -> int:
        """Number of warmup steps at the start of the run, or 0 if there is no warmup."""
        first = self.segments[0]
        return first.num_steps if first.name == WARMUP else 0

    @property
    def peak_lr(self) -> float:
        """Highest learning rate."""
        return max(max(segment.start_lr, segment.end_lr) for segment in self.segments)

    @property
    def final_lr(self) -> float:
        """Learning rate of the last step."""
        return self.segments[-1].end_lr

    def to_record(self) -> dict[str, Any]:
        """Return the schedule as plain values, for YAML and JSON."""
        return {"kind": self.kind, "segments": [dataclasses.asdict(segment) for segment in self.segments]}

    @staticmethod
    def from_record(kind: str, segments: Iterable[Mapping[str, Any]]) -> Schedule:
        """Return the schedule from the output of `to_record`."""
        return Schedule(kind=kind, segments=tuple(Segment(**segment) for segment in segments))


def build_schedule(
    kind: str,
    *,
    peak_lr: float,
    final_lr: float,
    total_steps: int,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    decay_shape: str = "linear",
    cooldown_steps: int | None = None,
    constant_lr: float | None = None,
    cycles: int = 1,
) -> Schedule:
    """Return a run's schedule.

    Args:
        kind: `cosine` and `linear` decay from the peak to the final rate at the last step; `constant` stays at the
            peak; `wsd` stays at the peak and decays over the last `decay_steps` (warmup, stable, decay: arXiv
            2404.06395); `infinite` cools down by a cosine over `cooldown_steps` to `constant_lr`, stays there and
            decays over the last `decay_steps` (0: no decay, to be continued; arXiv 2403.08763, section 7).
        peak_lr: Learning rate after the warmup.
        final_lr: Learning rate at the last step.
        total_steps: Number of steps of the run.
        warmup_steps: Number of steps of the linear warmup, from 0 or, after the first cycle, from the final rate.
        decay_steps: Number of steps of the final decay of `wsd` and `infinite`.
        decay_shape: Shape of the final decay, one of SHAPES.
        cooldown_steps: Number of steps of `infinite` from the peak to `constant_lr`.
        constant_lr: Learning rate of `infinite` between cooldown and decay.
        cycles: Number of repetitions of the whole shape (re-warming and re-decaying).

    Raises:
        ValueError: the kind is unknown, rates are in the wrong order, or parts are longer than the run.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if not (math.isfinite(peak_lr) and peak_lr > 0):
        raise ValueError(f"peak_lr must be above 0, got {peak_lr}")
    if not 0 <= final_lr <= peak_lr:
        raise ValueError(f"final_lr must lie between 0 and peak_lr {peak_lr}, got {final_lr}")
    if kind == "constant":
        final_lr = peak_lr
    bounds = [total_steps * cycle // cycles for cycle in range(cycles + 1)]
    segments: list[Segment] = []
    for first, stop in itertools.pairwise(bounds):
        start_lr = segments[-1].end_lr if segments else 0.0
        num_steps = stop - first - warmup_steps
        if num_steps < 1:
            raise ValueError(f"the warmup of {warmup_steps} steps does not fit into {stop - first} steps")
        if warmup_steps:
            segments.append(
                Segment(name=WARMUP, shape="linear", num_steps=warmup_steps, start_lr=start_lr, end_lr=peak_lr)
            )
        if kind == "wsd":
            segments += _hold_and_decay(num_steps, peak_lr, final_lr, decay_steps, decay_shape)
        elif kind == "infinite":
            cooldown = cooldown_steps or 0
            constant = _check_constant_lr(constant_lr, peak_lr, final_lr)
            if cooldown < 1 or cooldown >= num_steps:
                raise ValueError(
                    f"the cooldown of {cooldown} steps does not fit into the {num_steps} steps after the warmup"
                )
            segments.append(
                Segment(name="cooldown", shape="cosine", num_steps=cooldown, start_lr=peak_lr, end_lr=constant)
            )
            segments += _hold_and_decay(num_steps - cooldown, constant, final_lr, decay_steps, decay_shape)
        else:
            shape = "linear" if kind == "constant" else kind
            segments.append(Segment(name=kind, shape=shape, num_steps=num_steps, start_lr=peak_lr, end_lr=final_lr))
    return Schedule(kind=kind, segments=tuple(segments))


def _hold_and_decay(
    num_steps: int, stable_lr: float, final_lr: float, decay_steps: int | None, shape: str
) -> list[Segment]:
    decay = decay_steps or 0
    if decay >= num_steps:
        raise ValueError(f"the decay of {decay} steps does not fit into the remaining {num_steps} steps")
    stable = Segment(name="stable", shape="linear", num_steps=num_steps - decay, start_lr=stable_lr, end_lr=stable_lr)
    if not decay:
        return [stable]
    return [stable, Segment(name="decay", shape=shape, num_steps=decay, start_lr=stable_lr, end_lr=final_lr)]


def _check_constant_lr(constant_lr: float | None, peak_lr: float, final_lr: float) -> float:
    if constant_lr is None or not final_lr <= constant_lr <= peak_lr:
        raise ValueError(f"constant_lr must lie between final_lr {final_lr} and peak_lr {peak_lr}, got {constant_lr}")
    return constant_lr


def learning_rate_at(schedule: Schedule, step: int) -> float:
    """Return the learning rate at `step` (from 0). After the end, the last step's rate applies."""
    for segment in schedule.segments:
        if step < segment.num_steps:
            return segment.rate_at(step)
        step -= segment.num_steps
    return schedule.final_lr


def tabulate(schedule: Schedule) -> np.ndarray:
    """Return the learning rate of every step, float32 of shape (total_steps,)."""
    return _tabulate_exactly(schedule).astype(np.float32)


def find_lr_fraction(schedule: Schedule, fraction: float) -> int:
    """Return the first step after the peak at which the rate is at most `fraction` of the peak rate.

    Raises:
        ValueError: the rate never falls that low.
    """
    rates = _tabulate_exactly(schedule)
    peak_step = int(np.argmax(rates))
    low = np.nonzero(rates[peak_step:] <= fraction * schedule.peak_lr)[0]
    if not low.size:
        lowest = float(rates[peak_step:].min()) / schedule.peak_lr
        raise ValueError(f"the rate does not decay to {fraction:g} of the peak, only to {lowest:.3g}")
    return peak_step + int(low[0])


def _tabulate_exactly(schedule: Schedule) -> np.ndarray:
    return np.array(
        [segment.rate_at(index) for segment in schedule.segments for index in range(segment.num_steps)],
        dtype=np.float64,
    )
