"""The frontier of gain against forgetting, and the blend to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.recipe.mixture.design import draw_blends
from ascend_cpt.recipe.mixture.surface import Surface

Floats = NDArray[np.float64]

NUM_CANDIDATES = 4000
MAX_POINTS = 10


@dataclass(frozen=True, kw_only=True)
class Goals:
    """What forgetting and gain are: sums of measures with these weights, relative to the values before training."""

    general: tuple[str, ...]
    """Measures of forgetting."""
    others: tuple[str, ...]
    """Measures of the gain."""
    base: dict[str, float]
    """Value of each measure before training."""
    higher_is_better: frozenset[str] = frozenset()

    def weigh(self, names: Sequence[str]) -> dict[str, float]:
        """Return the weights with which the mean improvement of these measures is a sum of their values."""
        return {name: (1 if name in self.higher_is_better else -1) / len(names) for name in names}

    @property
    def forgetting(self) -> dict[str, float]:
        return {name: -weight for name, weight in self.weigh(self.general).items()}

    @property
    def gain(self) -> dict[str, float]:
        return self.weigh(self.others)

    def sum_base(self, weights: Mapping[str, float]) -> float:
        """Return a weighted sum of the values before training."""
        return sum(weight * self.base[name] for name, weight in weights.items())


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A blend with what is predicted for it, in nats per token (or points of score), with bands."""

    shares: tuple[float, ...]
    forgetting: float | None
    gain: float | None
    forgetting_band: tuple[float, float] | None = None
    gain_band: tuple[float, float] | None = None


def list_candidates(surface: Surface, tokens: Sequence[float], limits: Sequence[float], *, seed: int = 0) -> Floats:
    """Return blends within the range of the measured shares and the limits, float64 of shape (blends, sources).

    Args:
        surface: The fitted laws.
        tokens: Size of each source.
        limits: Largest share of each source.
        seed: Seed of the random numbers.
    """
    measured = surface.measurements.shares
    generator = np.random.default_rng(seed)
    sizes = np.asarray(tokens, dtype=np.float64)
    drawn = [draw_blends(sizes, NUM_CANDIDATES // 2, temperature=t, generator=generator) for t in (0.0, 0.5)]
    points = np.unique(np.vstack([measured, *drawn]), axis=0)
    inside = (points >= measured.min(axis=0)) & (points <= np.minimum(measured.max(axis=0), limits))
    chosen: Floats = points[inside.all(axis=1)]
    return chosen


def predict_blends(surface: Surface, goals: Goals, shares: Floats) -> list[Predicted]:
    """Return the predictions for blends, with bands."""
    sides: list[list[tuple[float | None, tuple[float, float] | None]]] = []
    for weights in (goals.forgetting, goals.gain):
        if not weights:
            sides.append([(None, None)] * len(shares))
            continue
        base = goals.sum_base(weights)
        mean = _predict_sum(surface, weights, shares) - base
        low, high = surface.find_band(weights, shares)
        sides.append([(float(m), (float(a - base), float(b - base))) for m, a, b in zip(mean, low, high, strict=True)])
    return [
        Predicted(
            shares=tuple(map(float, row)),
            forgetting=forgetting[0],
            forgetting_band=forgetting[1],
            gain=gain[0],
            gain_band=gain[1],
        )
        for row, forgetting, gain in zip(shares, *sides, strict=True)
    ]


def find_frontier(surface: Surface, goals: Goals, candidates: Floats, max_points: int = MAX_POINTS) -> list[Predicted]:
    """Return blends for which no candidate has both more gain and less forgetting, in order of forgetting."""
    base_forgetting, base_gain = goals.sum_base(goals.forgetting), goals.sum_base(goals.gain)
    forgetting = _predict_sum(surface, goals.forgetting, candidates) - base_forgetting
    gain = _predict_sum(surface, goals.gain, candidates) - base_gain
    best, kept = -np.inf, []
    for index in np.lexsort((-gain, forgetting)):
        if gain[index] > best:
            best = gain[index]
            kept.append(index)
    if len(kept) > max_points:
        # Points at equal distances in forgetting, with both ends.
        marks = np.linspace(forgetting[kept[0]], forgetting[kept[-1]], max_points)
        nearest = np.abs(forgetting[kept][None, :] - marks[:, None]).argmin(axis=1)
        kept = [kept[place] for place in sorted(set(nearest.tolist()))]
    return predict_blends(surface, goals, candidates[kept])


def recommend(surface: Surface, goals: Goals, candidates: Floats, max_forgetting: float | None) -> Predicted | None:
    """Return the blend with the most gain and at most this forgetting; None if no blend forgets so little.

    Without a limit, the blend with the largest gain minus forgetting. Without measures of one kind, the other decides.
    """
    gain = _predict_sum(surface, goals.gain, candidates) - goals.sum_base(goals.gain)
    forgetting = _predict_sum(surface, goals.forgetting, candidates) - goals.sum_base(goals.forgetting)
    merit = gain - forgetting if max_forgetting is None else np.where(forgetting <= max_forgetting, gain, -np.inf)
    index = int(merit.argmax())
    if not np.isfinite(merit[index]):
        return None
    return predict_blends(surface, goals, candidates[index : index + 1])[0]


def _predict_sum(surface: Surface, weights: Mapping[str, float], shares: Floats) -> Floats:
    total = np.zeros(len(shares))
    for name, weight in weights.items():
        total += weight * surface.predict(name, shares)
    return total
