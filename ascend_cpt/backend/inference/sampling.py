"""Token sampling. Each new token takes a forward pass over all tokens, because there is no key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# tokens (1, n) → logits (1, n, vocab)
ComputeLogits = Callable[[NDArray[np.int32]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose the next token: the most likely one at temperature 0, otherwise by nucleus sampling."""

    temperature: float = 0.0
    top_p: float = 1.0
    """Sample from the most likely tokens whose probabilities add up to this value."""
    seed: int = 0


def generate(
    compute_logits: ComputeLogits, prompt: Sequence[int], *, num_tokens: int, sampling: Sampling, eod_id: int | None
) -> Iterator[int]:
    """Yield up to `num_tokens` tokens that continue `prompt`, ending after the end-of-document token."""
    rng = np.random.default_rng(sampling.seed)
    tokens = list(prompt)
    for _ in range(num_tokens):
        logits = compute_logits(np.array([tokens], np.int32))[0, -1]
        token = choose_token(logits, sampling, rng)
        tokens.append(token)
        yield token
        if token == eod_id:
            return


def choose_token(logits: NDArray[np.float32], sampling: Sampling, rng: np.random.Generator) -> int:
    """Return the next token from logits (vocab,)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / sampling.temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    nucleus = order[before < sampling.top_p]
    return int(rng.choice(nucleus, p=probabilities[nucleus] / probabilities[nucleus].sum()))
