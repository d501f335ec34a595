"""Designs, laws, bands and frontiers against planted laws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ascend_cpt.recipe.mixture.design import UNITS, round_shares, sample_blends, upweight_source
from ascend_cpt.recipe.mixture.frontier import (
    Goals,
    find_frontier,
    list_candidates,
    predict_blends,
    recommend,
)
from ascend_cpt.recipe.mixture.laws import LAWS, count_parameters, fit_law
from ascend_cpt.recipe.mixture.surface import Measurements, Surface, list_outside

Floats = NDArray[np.float64]
TOKENS = (500.0, 300.0, 150.0, 50.0)
FACTORS = np.array([0.9, 0.4, 0.5, 0.3])
RATES = np.array([0.2, -1.0, 0.6, 0.1])


def power(shares: Floats) -> Floats:
    result: Floats = 3.0 + (shares @ FACTORS) ** -0.5
    return result


def exponential(shares: Floats) -> Floats:
    result: Floats = 2.0 + np.exp(shares @ RATES)
    return result


def linear(shares: Floats) -> Floats:
    result: Floats = np.exp(shares @ (RATES / 5 + 1))
    return result


def quadratic(shares: Floats) -> Floats:
    result: Floats = np.exp(shares @ (RATES / 5 + 1) - 0.4 * shares[:, 0] * shares[:, 1])
    return result


PLANTED: dict[str, Callable[[Floats], Floats]] = {
    "linear": linear,
    "quadratic": quadratic,
    "exponential": exponential,
    "power": power,
}


def design(num_blends: int, seed: int = 0) -> Floats:
    return np.array(sample_blends(TOKENS, num_blends, temperature=0.5, seed=seed))


def measure(num_blends: int = 30, noise: float = 0.01, seed: int = 0, seeds: int = 1) -> Measurements:
    """Losses of `general` and `code` by planted laws, with noise."""
    generator = np.random.default_rng(seed)
    shares = np.repeat(design(num_blends, seed), seeds, axis=0)
    return Measurements(
        shares=shares,
        values={
            "general": power(shares) + generator.normal(0, noise, len(shares)),
            "code": exponential(shares) + generator.normal(0, noise, len(shares)),
        },
    )


def make_goals() -> Goals:
    natural = round_shares(TOKENS)[None]
    return Goals(
        general=("general",),
        others=("code",),
        base={"general": float(power(natural)[0]) - 0.2, "code": float(exponential(natural)[0]) + 0.5},
    )


def test_the_design_has_printable_shares_and_begins_with_the_token_shares() -> None:
    blends = sample_blends(TOKENS, 40, temperature=0.5, seed=3)
    assert blends[0].tolist() == [0.5, 0.3, 0.15, 0.05]
    shares = np.array(blends)
    assert len(np.unique(shares, axis=0)) == 40
    units = shares * UNITS
    assert np.array_equal(units, units.round()) and np.array_equal(units.sum(axis=1), np.full(40, UNITS))
    assert ((shares == 0) | (shares >= 0.01)).all()
    # Wide in every source, and the large source has the larger mean.
    assert (np.ptp(shares, axis=0) > 0.3).all() and shares.mean(axis=0)[0] > shares.mean(axis=0)[3]
    assert [list(one) for one in blends] == [list(one) for one in sample_blends(TOKENS, 40, temperature=0.5, seed=3)]
    assert not np.array_equal(blends[1], sample_blends(TOKENS, 40, temperature=0.5, seed=4)[1])


def test_an_upweighted_source_always_gets_more() -> None:
    reference = round_shares((0.55, 0.3, 0.15))
    assert upweight_source(reference, 0, 0.5).tolist() == [0.775, 0.15, 0.075]
    assert upweight_source(reference, 2, 0.2).tolist() == [0.44, 0.24, 0.32]
    assert reference.tolist() == [0.55, 0.3, 0.15]


def test_a_design_of_one_source_is_refused() -> None:
    with pytest.raises(ValueError, match="only 1 different blends exist for 1 sources"):
        sample_blends((5.0,), 3, temperature=0.5, seed=0)


@pytest.mark.parametrize("name", LAWS)
def test_a_law_recovers_itself(name: str) -> None:
    """Without noise, the error on new blends is far below the range of the values."""
    shares, new = design(30), design(50, seed=9)
    law = fit_law(name, shares, PLANTED[name](shares))
    assert law is not None
    error = np.abs(law.predict(new) - PLANTED[name](new)).max() / np.ptp(PLANTED[name](new))
    assert error < (0.02 if name in ("power", "exponential", "quadratic") else 1e-9)


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0, 2.0])
def test_the_power_law_has_different_exponents(gamma: float) -> None:
    shares, new = design(30), design(50, seed=9)
    law = fit_law("power", shares, 3 + (shares @ FACTORS) ** -gamma)
    assert law is not None
    expected = 3 + (new @ FACTORS) ** -gamma
    assert np.abs(law.predict(new) - expected).max() / np.ptp(expected) < 0.03


def test_a_law_needs_more_blends_than_parameters() -> None:
    shares = design(8)
    values = power(shares)
    assert fit_law("quadratic", shares, values) is None and fit_law("power", shares, values) is not None
    assert [count_parameters(name, 4) for name in LAWS] == [4, 10, 5, 6]
    # Repeating a blend with other seeds does not help.
    repeated = np.repeat(design(4), 5, axis=0)
    assert fit_law("linear", repeated, power(repeated)) is None


def test_scores_are_fitted_without_a_logarithm() -> None:
    shares = design(30)
    scores = 0.2 * shares[:, 0] - 0.1
    law = fit_law("linear", shares, scores, is_loss=False)
    assert law is not None and np.allclose(law.predict(shares), scores)
    assert fit_law("power", shares, scores, is_loss=False) is None


def test_the_planted_law_is_chosen_by_the_error_on_left_out_blends() -> None:
    measurements = measure(noise=0.003)
    surface = Surface(measurements)
    general, code = surface.fitted["general"], surface.fitted["code"]
    assert general.law is not None and general.law.name in ("power", "exponential") and not general.has_failed
    assert code.law is not None and not code.has_failed
    assert general.errors["linear"] > 2 * general.error
    # The error reported is about the noise, and holds on new blends.
    new = design(60, seed=11)
    assert np.sqrt(np.mean((surface.predict("general", new) - power(new)) ** 2)) < 2 * general.error < 0.02
    assert general.noise is None and general.mean_error > 5 * general.error


def test_noise_is_the_deviation_between_seeds() -> None:
    surface = Surface(measure(num_blends=20, noise=0.02, seeds=4))
    noise = surface.fitted["general"].noise
    assert noise is not None and 0.016 < noise < 0.024 and surface.num_blends == 20


def test_bands_cover_new_runs() -> None:
    """Over 12 searches with 10 new runs each, 80 to 99 % of the outcomes are within the 90 % bands."""
    goals = make_goals()
    covered = []
    for seed in range(12):
        surface = Surface(measure(num_blends=24, noise=0.02, seed=seed), seed=seed)
        new = design(10, seed=100 + seed)
        generator = np.random.default_rng(1000 + seed)
        outcomes = power(new) + generator.normal(0, 0.02, 10) - goals.base["general"]
        for one, outcome in zip(predict_blends(surface, goals, new), outcomes, strict=True):
            assert one.forgetting_band is not None and one.forgetting is not None
            low, high = one.forgetting_band
            covered.append(low <= outcome <= high)
    assert 0.8 <= np.mean(covered) <= 0.99


def test_a_failed_fit_is_detected() -> None:
    """Values without a law: in most of ten cases, no law is better than the mean. The planted law never fails."""
    shares, failed = design(20), 0
    for seed in range(10):
        noise = 4 + np.random.default_rng(seed).normal(0, 0.1, 20)
        surface = Surface(Measurements(shares=shares, values={"noise": noise, "good": power(shares)}))
        failed += surface.fitted["noise"].has_failed
        assert not surface.fitted["good"].has_failed
    assert failed >= 7


def test_too_few_blends() -> None:
    shares = design(3)
    with pytest.raises(ValueError, match="a fit needs at least 4 blends, but only 3 are measured"):
        Surface(Measurements(shares=shares, values={"general": power(shares)}))


def test_the_frontier_is_the_planted_one_and_the_recommendation_obeys_the_limit() -> None:
    surface, goals = Surface(measure(noise=0.002)), make_goals()
    candidates = list_candidates(surface, TOKENS, [1.0] * 4)
    frontier = find_frontier(surface, goals, candidates)
    assert 3 <= len(frontier) <= 10
    forgetting = [one.forgetting or 0.0 for one in frontier]
    gains = [one.gain or 0.0 for one in frontier]
    assert forgetting == sorted(forgetting) and gains == sorted(gains)
    true_forgetting = power(candidates) - goals.base["general"]
    true_gain = goals.base["code"] - exponential(candidates)
    for limit in (0.15, 0.25, 0.4):
        best = recommend(surface, goals, candidates, limit)
        assert best is not None and best.forgetting is not None and best.forgetting <= limit
        best_possible = true_gain[true_forgetting <= limit].max()
        shares = np.array([best.shares])
        assert goals.base["code"] - exponential(shares)[0] > best_possible - 0.02
        assert power(shares)[0] - goals.base["general"] < limit + 0.02
    assert recommend(surface, goals, candidates, -1.0) is None
    free = recommend(surface, goals, candidates, None)
    assert free is not None
    shares = np.array([free.shares])
    total = power(candidates) + exponential(candidates)
    assert (power(shares) + exponential(shares))[0] < total.min() + 0.02


def test_candidates_are_within_the_measured_range_and_the_limits() -> None:
    surface = Surface(measure())
    measured = surface.measurements.shares
    candidates = list_candidates(surface, TOKENS, [1.0, 1.0, 0.2, 1.0])
    assert len(candidates) > 500 and candidates[:, 2].max() <= 0.2
    assert (candidates >= measured.min(axis=0)).all() and (candidates <= measured.max(axis=0)).all()
    outside = np.array([0.0, 0.0, 0.0, 1.0])
    assert list_outside(outside, np.array([[0.5, 0.2, 0.2, 0.1], [0.0, 0.6, 0.2, 0.2]]), "abcd") == ["b", "c", "d"]


def test_scores_where_higher_is_better() -> None:
    goals = Goals(
        general=("acc",), others=("loss",), base={"acc": 0.5, "loss": 3.0}, higher_is_better=frozenset({"acc"})
    )
    assert goals.forgetting == {"acc": -1.0} and goals.gain == {"loss": -1.0}
