"""Token sampling from logits, without a network."""

from __future__ import annotations

import numpy as np
import pytest

from ascend_cpt.backend.inference.sampling import Sampling, choose_token, generate

LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))


def test_temperature_0_takes_the_most_likely_token() -> None:
    assert choose_token(LOGITS, Sampling(), np.random.default_rng()) == 1


def test_samples_follow_the_probabilities_and_the_seed() -> None:
    def draw(temperature: float, top_p: float, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        sampling = Sampling(temperature=temperature, top_p=top_p)
        return np.array([choose_token(LOGITS, sampling, rng) for _ in range(4000)])

    frequencies = np.bincount(draw(1.0, 1.0), minlength=4) / 4000
    np.testing.assert_allclose(frequencies, [0.1, 0.5, 0.15, 0.25], atol=0.03)
    np.testing.assert_array_equal(draw(1.0, 1.0), draw(1.0, 1.0))
    assert (draw(1.0, 1.0) != draw(1.0, 1.0, seed=1)).any()
    assert (np.bincount(draw(0.5, 1.0), minlength=4) / 4000)[1] > 0.6
    assert set(draw(1.0, 0.7)) == {1, 3}
    assert set(draw(1.0, 1e-9)) == {1}


@pytest.mark.parametrize(("eod_id", "expected"), [(None, [1, 2, 3, 4, 5, 6]), (4, [1, 2, 3, 4])])
def test_generation_stops_at_the_end_of_document(eod_id: int | None, expected: list[int]) -> None:
    def count_up(tokens: np.ndarray) -> np.ndarray:
        return np.eye(10, dtype=np.float32)[tokens + 1]

    assert [*generate(count_up, [0], num_tokens=6, sampling=Sampling(), eod_id=eod_id)] == expected
