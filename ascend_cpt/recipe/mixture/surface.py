"""Chooses a law for each measure by leave-out error, and predicts with bands.

The error of a law is that on blends which were left out of the fit (all seeds of a blend are left out together). The
bands contain both the uncertainty of the fit, from bootstrap samples of the blends, and the errors on left-out blends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.recipe.mixture.laws import LAWS, Law, fit_law

Floats = NDArray[np.float64]

NUM_BOOTSTRAPS = 100
COVERAGE = 0.9
"""Nominal coverage of the bands."""
MIN_BLENDS = 4


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Measured values of all proxies."""

    shares: Floats
    """Shape (proxies, sources)."""
    values: dict[str, Floats]
    """Measure → value of each proxy, shape (proxies,)."""
    scores: frozenset[str] = frozenset()
    """Measures that are scores of tasks; the others are losses."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The law chosen for a measure."""

    law: Law | None
    """None if no law can be fitted."""
    error: float
    """Root mean square error on left-out blends."""
    mean_error: float
    """The same error when the mean of the other proxies is predicted."""
    noise: float | None
    """Standard deviation between seeds of one blend; None without repeated blends."""
    errors: dict[str, float]
    """Error of each law that can be fitted."""
    residuals: Floats
    """Measured minus predicted value of every proxy, when its blend is left out."""

    @property
    def has_failed(self) -> bool:
        """Whether the law predicts left-out blends no better than the mean does."""
        return self.law is None or not self.error < self.mean_error


class Surface:
    """Laws for all measures.

    Args:
        measurements: The proxies.
        seed: Seed of the bootstrap samples.

    Raises:
        ValueError: there are fewer than `MIN_BLENDS` blends.
    """

    def __init__(self, measurements: Measurements, *, seed: int = 0) -> None:
        self.measurements = measurements
        _, groups = np.unique(measurements.shares, axis=0, return_inverse=True)
        self._groups: NDArray[np.int64] = np.asarray(groups, dtype=np.int64).ravel()
        if self.num_blends < MIN_BLENDS:
            raise ValueError(f"a fit needs at least {MIN_BLENDS} blends, but only {self.num_blends} are measured")
        self.fitted = {name: self._choose(name) for name in measurements.values}
        self._samples = _draw_samples(self._groups, np.random.default_rng(seed))
        self._sampled_laws: dict[str, list[Law]] = {}

    @property
    def num_blends(self) -> int:
        """Number of different blends."""
        return int(self._groups.max()) + 1

    def predict(self, name: str, shares: Floats) -> Floats:
        """Return the predicted values of a measure, shape (blends,).

        Raises:
            ValueError: no law could be fitted.
        """
        law = self.fitted[name].law
        if law is None:
            raise ValueError(f"{name}: no law can be fitted")
        return law.predict(shares)

    def draw(self, weights: Mapping[str, float], shares: Floats) -> Floats:
        """Return random outcomes of a weighted sum of measures, shape (samples, blends).

        The samples contain the uncertainty of the fits and the errors on left-out blends, which are drawn for all
        measures from the same proxy, because they are correlated.
        """
        total = np.zeros((NUM_BOOTSTRAPS, len(shares)))
        for name, weight in weights.items():
            residuals = self.fitted[name].residuals
            if name not in self._sampled_laws:
                self._sampled_laws[name] = self._resample(name)
            for index, (law, sample) in enumerate(zip(self._sampled_laws[name], self._samples, strict=True)):
                total[index] += weight * (law.predict(shares) + residuals[sample.proxies])
        return total

    def find_band(self, weights: Mapping[str, float], shares: Floats) -> tuple[Floats, Floats]:
        """Return the lower and upper limits of a weighted sum of measures for new runs, each of shape (blends,)."""
        outcomes = self.draw(weights, shares)
        margin = (1 - COVERAGE) / 2
        low, high = np.quantile(outcomes, [margin, 1 - margin], axis=0)
        return low, high

    def _choose(self, name: str) -> Fitted:
        shares, values = self.measurements.shares, self.measurements.values[name]
        is_loss = name not in self.measurements.scores
        left_out = {law: self._predict_left_out(law, values, is_loss=is_loss) for law in LAWS}
        errors = {law: _root_mean_square(values - one) for law, one in left_out.items() if one is not None}
        means = np.array([values[self._groups != group].mean() for group in range(self.num_blends)])[self._groups]
        # With equal errors, the law with fewer parameters comes first.
        order = sorted(errors, key=lambda law: (errors[law], LAWS.index(law)))
        chosen = next(iter(order), None)
        law = None if chosen is None else fit_law(chosen, shares, values, is_loss=is_loss)
        predicted = left_out[chosen] if chosen is not None else means
        assert predicted is not None
        return Fitted(
            law=law,
            error=errors[chosen] if chosen is not None else float("nan"),
            mean_error=_root_mean_square(values - means),
            noise=_measure_noise(values, self._groups),
            errors=errors,
            residuals=values - predicted,
        )

    def _predict_left_out(self, law: str, values: Floats, *, is_loss: bool) -> Floats | None:
        shares = self.measurements.shares
        predicted = np.empty_like(values)
        for group in range(self.num_blends):
            inside = self._groups == group
            fit = fit_law(law, shares[~inside], values[~inside], is_loss=is_loss)
            if fit is None:
                return None
            predicted[inside] = fit.predict(shares[inside])
        return predicted if np.isfinite(predicted).all() else None

    def _resample(self, name: str) -> list[Law]:
        """Return the chosen law, fitted to each sample. Samples with too few blends keep the fit of all proxies."""
        law = self.fitted[name].law
        assert law is not None
        shares, values = self.measurements.shares, self.measurements.values[name]
        is_loss = name not in self.measurements.scores
        return [
            fit_law(law.name, shares[sample.chosen], values[sample.chosen], is_loss=is_loss) or law
            for sample in self._samples
        ]


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """A bootstrap sample."""

    chosen: NDArray[np.int64]
    """Indices of the proxies to fit."""
    proxies: int
    """Index of the proxy whose error on left-out data is added."""


def _draw_samples(groups: NDArray[np.int64], generator: np.random.Generator) -> list[_Sample]:
    num_groups = int(groups.max()) + 1
    members = [np.nonzero(groups == group)[0] for group in range(num_groups)]
    samples = []
    for _ in range(NUM_BOOTSTRAPS):
        drawn = generator.integers(num_groups, size=num_groups)
        chosen = np.concatenate([members[group] for group in drawn])
        samples.append(_Sample(chosen=chosen, proxies=int(generator.integers(len(groups)))))
    return samples


def _measure_noise(values: Floats, groups: NDArray[np.int64]) -> float | None:
    """Return the pooled standard deviation within the groups, or None if every group has one value."""
    parts = [values[groups == group] for group in range(int(groups.max()) + 1)]
    degrees = sum(len(part) - 1 for part in parts)
    if not degrees:
        return None
    return float(np.sqrt(sum(np.sum((part - part.mean()) ** 2) for part in parts) / degrees))


def _root_mean_square(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))


def list_outside(shares: Floats, measured: Floats, names: Sequence[str]) -> list[str]:
    """Return the sources whose share in a blend is outside the range of the measured shares."""
    low, high = measured.min(axis=0), measured.max(axis=0)
    return [
        name for name, share, least, most in zip(names, shares, low, high, strict=True) if not least <= share <= most
    ]
