"""Samples a batch of texts from a model with a key-value cache, on the CPU with NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.model.sizes import ModelSizes
from ascend_cpt.weights.forward import CachedDecoder, Reader

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose tokens."""

    temperature: float = 1.0
    top_p: float = 1.0
    """Sample from the most likely tokens whose probabilities add up to this value."""
    max_tokens: int = 256
    """Largest number of tokens of a text, with its prompt."""
    seed: int = 0


def sample_batch(
    sizes: ModelSizes,
    read: Reader,
    prompts: Sequence[Sequence[int]],
    *,
    first_index: int,
    sampling: Sampling,
    stop_id: int,
) -> list[list[int]]:
    """Return the tokens of one text per prompt, without the first token and the stop token.

    All sequences advance by one position at a time; those with longer prompts read their prompt while others already
    sample. The random numbers of a text depend only on the seed and its index, not on the batch.

    Args:
        sizes: The model.
        read: Returns a tensor as float32.
        prompts: Tokens of each prompt; the first token is the document boundary.
        first_index: Index of the first text in the whole run.
        sampling: How to choose tokens.
        stop_id: The token that ends a text.
    """
    length = sampling.max_tokens + 1
    texts = [list(prompt[:length]) for prompt in prompts]
    draws = np.array(
        [np.random.default_rng([sampling.seed, first_index + row]).random(length) for row in range(len(texts))]
    )
    decoder = CachedDecoder(sizes, read, batch_size=len(texts), max_length=length)
    rows = np.arange(len(texts))
    for position in range(length - 1):
        tokens = np.array([texts[row][position] for row in rows])
        logits = decoder.compute_logits(tokens)
        chosen = choose_tokens(logits, draws[rows, position], sampling)
        alive = []
        for place, row in enumerate(rows):
            if position + 1 < len(prompts[row]):  # still reading the prompt
                alive.append(place)
            elif chosen[place] != stop_id:
                texts[row].append(int(chosen[place]))
                alive.append(place)
        if not alive:
            break
        if len(alive) < len(rows):
            decoder.keep(np.array(alive))
            rows = rows[alive]
    return [text[1:] for text in texts]


def choose_tokens(logits: NDArray[np.float32], draws: Floats, sampling: Sampling) -> NDArray[np.int64]:
    """Return the next token of each row of logits (rows, vocab), given a random number in [0, 1) for each row."""
    if sampling.temperature == 0:
        greedy: NDArray[np.int64] = logits.argmax(axis=1)
        return greedy
    scaled = logits.astype(np.float64) / sampling.temperature
    probabilities = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    if sampling.top_p >= 1:
        return _invert(probabilities, draws)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=1)
    before = np.cumsum(ordered, axis=1) - ordered
    ordered[before >= sampling.top_p] = 0.0
    places = _invert(ordered / ordered.sum(axis=1, keepdims=True), draws)
    chosen: NDArray[np.int64] = np.take_along_axis(order, places[:, None], axis=1)[:, 0]
    return chosen


def _invert(probabilities: Floats, draws: Floats) -> NDArray[np.int64]:
    """Return the first index of each row whose cumulative probability exceeds the row's random number."""
    sums = np.cumsum(probabilities, axis=1)
    places: NDArray[np.int64] = (sums > (draws * sums[:, -1])[:, None]).argmax(axis=1)
    return places
