"""Fits the time model's efficiencies to speeds, by damped least squares on the logarithms.

Parameters are fitted in transformed space (logarithm, or logit for fractions) with priors, because a few speeds do not
determine all parameters. Residuals are weighted as in Huber's loss, so that an outlier has limited influence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.plan.case import TrainingCase
from ascend_cpt.plan.speed.efficiency import Efficiency
from ascend_cpt.plan.speed.throughput import Rates, estimate_step

Vector = NDArray[np.float64]
FRACTIONS = ("matmul", "attention", "exchange", "data_hidden", "tensor_hidden")
# Expected relative error of a figure. Two published figures for the same layout differ by 11%.
SIGMA = 0.08
HUBER = 1.5
MAX_ITERATIONS = 60
STEP = 1e-4


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A measured or published speed."""

    case: TrainingCase
    machine: Rates
    tokens_per_device_s: float
    group: str = ""
    """Speeds of one group share the parameters that are not common to all groups."""


@dataclass(frozen=True, kw_only=True)
class Prior:
    """A parameter's typical value, and its standard deviation in transformed space (0 fixes the parameter)."""

    value: float
    sigma: float


def predict(speed: Speed, efficiency: Efficiency) -> float:
    """Return tokens per second per device."""
    return estimate_step(speed.case, speed.machine, efficiency).tokens_per_device_s


def fit(
    speeds: Sequence[Speed], priors: Mapping[str, Prior], by_group: Sequence[str] = (), *, sigma: float = SIGMA
) -> dict[str, Efficiency]:
    """Return the efficiencies for every group.

    Args:
        speeds: The speeds to fit.
        priors: One for every field of `Efficiency`.
        by_group: Fields that have a separate value in each group.
        sigma: Expected relative error of a speed.
    """
    groups = sorted({speed.group for speed in speeds})
    keys = [
        (name, group) for name in priors if priors[name].sigma > 0 for group in (groups if name in by_group else [""])
    ]
    start = np.array([_transform(name, priors[name].value) for name, _ in keys])
    scale = np.array([priors[name].sigma for name, _ in keys])

    def unpack(point: Vector) -> dict[str, Efficiency]:
        values = {name: prior.value for name, prior in priors.items()}
        found = {}
        for group in groups:
            own = {
                name: _restore(name, float(number))
                for (name, owner), number in zip(keys, point, strict=True)
                if owner in ("", group)
            }
            found[group] = Efficiency(**{**values, **own})
        return found

    def list_residuals(point: Vector) -> Vector:
        efficiencies = unpack(point)
        errors = [
            math.log(predict(speed, efficiencies[speed.group]) / speed.tokens_per_device_s) / sigma for speed in speeds
        ]
        return np.array([*errors, *((point - start) / scale)])

    return unpack(_minimize(list_residuals, start, len(speeds)))


def change(efficiency: Efficiency, name: str, value: float) -> Efficiency:
    """Return the efficiency with a field set to another value."""
    return dataclasses.replace(efficiency, **{name: value})


def _minimize(list_residuals: Callable[[Vector], Vector], start: Vector, num_speeds: int) -> Vector:
    """Return the point with the smallest robust loss, by Levenberg-Marquardt."""
    point, damping = start.copy(), 1e-2
    residuals = list_residuals(point)
    for _ in range(MAX_ITERATIONS):
        jacobian = np.stack(
            [(list_residuals(point + STEP * unit) - residuals) / STEP for unit in np.eye(len(point))], axis=1
        )
        weights = np.ones(len(residuals))
        weights[:num_speeds] = np.minimum(1.0, HUBER / np.maximum(np.abs(residuals[:num_speeds]), 1e-12))
        normal = jacobian.T @ (weights[:, None] * jacobian)
        gradient = jacobian.T @ (weights * residuals)
        while damping < 1e6:
            moved = point - np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
            after = list_residuals(moved)
            if _loss(after, num_speeds) < _loss(residuals, num_speeds):
                break
            damping *= 4
        else:
            return point
        is_done = float(np.max(np.abs(moved - point))) < 1e-5
        point, residuals, damping = moved, after, damping / 4
        if is_done:
            break
    return point


def _loss(residuals: Vector, num_speeds: int) -> float:
    size = np.abs(residuals[:num_speeds])
    robust = np.where(size < HUBER, size**2 / 2, HUBER * size - HUBER**2 / 2)
    return float(robust.sum() + (residuals[num_speeds:] ** 2).sum() / 2)


def _transform(name: str, value: float) -> float:
    return math.log(value / (1 - value)) if name in FRACTIONS else math.log(value)


def _restore(name: str, number: float) -> float:
    return 1 / (1 + math.exp(-number)) if name in FRACTIONS else math.exp(number)
