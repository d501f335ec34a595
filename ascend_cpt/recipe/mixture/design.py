"""Chooses the blends to train proxies on.

The design is RegMix's (arXiv 2407.01492): shares are drawn from a Dirichlet distribution around the shares of the
tokens, flattened by a temperature, with different concentrations. Blends are arrays of shares that add up to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.recipe.blend import split_by_largest_remainder

Floats = NDArray[np.float64]

UNITS = 1000
"""Shares are multiples of 1 / UNITS, so that a printed blend is the blend that was trained."""
MIN_SHARE = 0.01
MAX_TRIES = 200


def round_shares(shares: Sequence[float] | Floats, min_share: float = MIN_SHARE) -> Floats:
    """Return shares rounded to multiples of 1 / UNITS, float64 (sources,). Shares below `min_share` become 0."""
    values = np.asarray(shares, dtype=np.float64)
    values = np.where(values / values.sum() < min_share, 0.0, values)
    exact = [Fraction(float(value)) for value in values]
    total = sum(exact)
    return np.array(split_by_largest_remainder(UNITS, [value / total for value in exact])) / UNITS


def sample_blends(tokens: Sequence[float], num_blends: int, *, temperature: float, seed: int) -> list[Floats]:
    """Return different blends; the first one has the shares of the tokens.

    Args:
        tokens: Size of each source.
        num_blends: Number of blends.
        temperature: Exponent of the token shares in the mean of the distribution: 1 keeps them, 0 makes them equal.
        seed: Seed of the random numbers.

    Raises:
        ValueError: there are not as many different blends.
    """
    sizes = np.asarray(tokens, dtype=np.float64)
    blends = [round_shares(sizes)]
    seen = {blends[0].tobytes()}
    generator = np.random.default_rng(seed)
    for _ in range(MAX_TRIES * num_blends):
        if len(blends) >= num_blends:
            break
        blend = draw_blends(sizes, 1, temperature=temperature, generator=generator)[0]
        if blend.tobytes() not in seen:
            seen.add(blend.tobytes())
            blends.append(blend)
    if len(blends) < num_blends:
        raise ValueError(f"only {len(blends)} different blends exist for {len(sizes)} sources")
    return blends[:num_blends]


def upweight_source(reference: Floats, source: int, part: float) -> Floats:
    """Return a blend in which `part` of the reference is replaced by one source, float64 of shape (sources,)."""
    shares = reference * (1 - part)
    shares[source] += part
    return round_shares(shares, min_share=0.0)


def draw_blends(tokens: Floats, num_blends: int, *, temperature: float, generator: np.random.Generator) -> Floats:
    """Return random blends, float64 of shape (blends, sources)."""
    mean = (tokens / tokens.sum()) ** temperature
    mean /= mean.sum()
    # From blends with one or two large sources to blends close to the mean.
    strengths = len(tokens) * 2.0 ** generator.uniform(-2, 1, num_blends)
    draws = [generator.dirichlet(np.maximum(strength * mean, 1e-3)) for strength in strengths]
    return np.array([round_shares(draw) for draw in draws]).reshape(num_blends, len(tokens))
