"""Fits laws of a loss or a score as a function of the shares of the sources, at a fixed model size and budget.

With shares r, which add up to 1:
    linear       log L = Σ bᵢ rᵢ (RegMix's linear regression, arXiv 2407.01492)
    quadratic    log L = Σ bᵢ rᵢ + Σ cᵢⱼ rᵢ rⱼ, with a ridge penalty on c
    exponential  L = E + exp(Σ tᵢ rᵢ) (data mixing laws, arXiv 2403.16952)
    power        L = E + (Σ aᵢ rᵢ)^-γ, a > 0: for two sources, the share's term of the D-CPT law (arXiv 2406.01375)

Scores, and values that are not above 0, have only the first two laws, of the value instead of its logarithm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LAWS = ("linear", "quadratic", "exponential", "power")
GAMMAS = (0.25, 0.5, 1.0, 2.0)
RIDGE = 1e-5
"""Penalty of the quadratic terms, per proxy."""
MIN_FACTOR = 1e-3
"""Smallest a of the power law, relative to the largest."""
FLOOR_GAPS = 2.0 ** np.arange(-5.0, 6.0)
"""Distances of E below the smallest value that are tried, in units of the range of the values."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fitted law."""

    name: str
    predict: Callable[[Floats], Floats]
    """Shares (blends, sources) → values (blends,)."""


def count_parameters(name: str, num_sources: int) -> int:
    """Return the number of fitted parameters of a law."""
    pairs = num_sources * (num_sources - 1) // 2
    return num_sources + {"linear": 0, "quadratic": pairs, "exponential": 1, "power": 2}[name]


def fit_law(name: str, shares: Floats, values: Floats, *, is_loss: bool = True) -> Law | None:
    """Return the law that fits best in the least-squares sense, or None if it cannot be fitted.

    Args:
        name: One of LAWS.
        shares: Shape (proxies, sources).
        values: The loss or score of each proxy, shape (proxies,).
        is_loss: Whether the values are losses.
    """
    num_distinct = len(np.unique(shares, axis=0))
    if num_distinct <= count_parameters(name, shares.shape[1]):
        return None
    uses_log = is_loss and bool(values.min() > 0)
    if name in ("linear", "quadratic"):
        return _fit_regression(name, shares, values, uses_log=uses_log)
    if not uses_log:
        return None
    return _fit_exponential(shares, values) if name == "exponential" else _fit_power(shares, values)


def _fit_regression(name: str, shares: Floats, values: Floats, *, uses_log: bool) -> Law:
    first, second = np.triu_indices(shares.shape[1], k=1)

    def make_features(points: Floats) -> Floats:
        products: Floats = np.hstack([points, points[:, first] * points[:, second]])
        return points if name == "linear" else products

    features = make_features(shares)
    # Rows of the penalty only for products of shares; the linear terms carry the mean, which must not shrink.
    num_products = features.shape[1] - shares.shape[1]
    penalty = np.hstack([np.zeros((num_products, shares.shape[1])), np.eye(num_products)]) * np.sqrt(
        RIDGE * len(values)
    )
    targets = np.concatenate([np.log(values) if uses_log else values, np.zeros(num_products)])
    weights = np.linalg.lstsq(np.vstack([features, penalty]), targets, rcond=None)[0]

    def predict(points: Floats) -> Floats:
        result: Floats = make_features(points) @ weights
        return np.asarray(np.exp(result)) if uses_log else result

    return Law(name=name, predict=predict)


def _list_floors(values: Floats) -> Floats:
    """Return the values of E to try, all below the smallest value."""
    spread = float(np.ptp(values)) or abs(float(values.min())) * 1e-3
    floors: Floats = values.min() - FLOOR_GAPS * spread
    return floors


def _fit_exponential(shares: Floats, values: Floats) -> Law | None:
    """Choose the best E; given E, the logarithm of L - E is linear in the shares."""
    floors = _list_floors(values)
    excess = values - floors[:, None]
    # d L = (L - E) d log(L - E): the weights make this a fit of L.
    rates = _solve_weighted(shares, np.log(excess), excess)
    predicted = floors[:, None] + np.exp(np.minimum(rates @ shares.T, 50.0))
    best = _find_best(predicted, values)
    if best is None:
        return None
    floor, chosen = float(floors[best]), rates[best]

    def predict(points: Floats) -> Floats:
        result: Floats = floor + np.exp(np.minimum(points @ chosen, 50.0))
        return result

    return Law(name="exponential", predict=predict)


def _fit_power(shares: Floats, values: Floats) -> Law | None:
    """Choose the best E and γ with only positive a; given E and γ, (L - E)^(-1/γ) is linear in the shares."""
    floors, gammas = (grid.ravel() for grid in np.meshgrid(_list_floors(values), GAMMAS))
    excess = values - floors[:, None]
    inner = excess ** (-1 / gammas[:, None])
    factors = _solve_weighted(shares, inner, excess / inner)
    is_positive = factors.min(axis=1) > MIN_FACTOR * factors.max(axis=1)
    sums = np.where(is_positive[:, None], factors, np.nan) @ shares.T
    best = _find_best(floors[:, None] + sums ** -gammas[:, None], values)
    if best is None:
        return None
    floor, gamma, chosen = float(floors[best]), float(gammas[best]), factors[best]

    def predict(points: Floats) -> Floats:
        result: Floats = floor + (points @ chosen) ** -gamma
        return result

    return Law(name="power", predict=predict)


def _solve_weighted(shares: Floats, targets: Floats, weights: Floats) -> Floats:
    """Return the weighted least-squares coefficients of every row of targets, shape (rows, sources)."""
    squared = weights**2
    num_sources = shares.shape[1]
    outer = (shares[:, :, None] * shares[:, None, :]).reshape(len(shares), -1)
    products = (squared @ outer).reshape(-1, num_sources, num_sources)
    scale = np.trace(products, axis1=1, axis2=2)[:, None, None]
    right = (squared * targets) @ shares
    # The tiny penalty keeps the matrices regular when a sample of the blends lacks a source.
    solution: Floats = np.linalg.solve(products + 1e-10 * scale * np.eye(num_sources), right[..., None])[..., 0]
    return solution


def _find_best(predicted: Floats, values: Floats) -> int | None:
    """Return the row of predictions with the smallest squared error; None if no row is finite."""
    errors = np.sum((predicted - values) ** 2, axis=1)
    errors = np.where(np.isfinite(errors), errors, np.inf)
    best = int(errors.argmin())
    return best if np.isfinite(errors[best]) else None
