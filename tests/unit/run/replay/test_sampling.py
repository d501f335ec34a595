"""Batched sampling with a key-value cache: the same texts as without a cache, in any batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.model.sizes import ModelSizes
from ascend_cpt.run.replay.sampling import Sampling, choose_tokens, sample_batch
from ascend_cpt.weights.dtypes import to_float32
from ascend_cpt.weights.forward import CachedDecoder, compute_logits
from ascend_cpt.weights.hf_folder import HfFolder

REFERENCE = Path(__file__).resolve().parents[3] / "reference"
Read = Callable[[str], np.ndarray]


def load(name: str) -> tuple[ModelSizes, Read]:
    folder = HfFolder(REFERENCE / name)
    tensors = {key: to_float32(folder.read(key), info.dtype) for key, info in folder.tensors.items()}
    return folder.sizes, tensors.__getitem__


@pytest.mark.parametrize("name", ["qwen3", "qwen3_tied", "llama31", "qwen25_tied", "qwen3_moe"])
def test_a_cached_decoder_gives_the_logits_of_the_whole_sequence(name: str) -> None:
    sizes, read = load(name)
    tokens = np.load(REFERENCE / name / "expected.npz")["tokens"]
    expected = compute_logits(sizes, read, tokens)
    decoder = CachedDecoder(sizes, read, batch_size=len(tokens), max_length=tokens.shape[1])
    for position in range(tokens.shape[1]):
        logits = decoder.compute_logits(tokens[:, position])
        np.testing.assert_allclose(logits, expected[:, position], atol=2e-5)


def test_sequences_can_be_dropped() -> None:
    sizes, read = load("qwen3")
    tokens = np.load(REFERENCE / "qwen3" / "expected.npz")["tokens"]
    whole = np.vstack([tokens[:1, :6], tokens[:1, 3:9], tokens[:1, 1:7]])
    decoder = CachedDecoder(sizes, read, batch_size=3, max_length=6)
    for position in range(4):
        decoder.compute_logits(whole[:, position])
    decoder.keep(np.array([2, 0]))
    for position in (4, 5):
        logits = decoder.compute_logits(whole[[2, 0], position])
    np.testing.assert_allclose(logits, compute_logits(sizes, read, whole[[2, 0]])[:, -1], atol=2e-5)


def test_a_text_does_not_depend_on_its_batch() -> None:
    sizes, read = load("qwen3")
    sampling = Sampling(max_tokens=12, seed=3)
    prompts = [[0], [0, 5, 6, 7], [0], [0, 9]]
    together = sample_batch(sizes, read, prompts, first_index=10, sampling=sampling, stop_id=0)
    alone = [
        sample_batch(sizes, read, [prompt], first_index=10 + index, sampling=sampling, stop_id=0)[0]
        for index, prompt in enumerate(prompts)
    ]
    assert together == alone
    assert together[1][:3] == [5, 6, 7] and together[3][0] == 9 and together[0] != together[2]
    assert max(map(len, together)) == 12 and all(0 not in text for text in together)
    other = Sampling(max_tokens=12, seed=4)
    assert sample_batch(sizes, read, prompts, first_index=10, sampling=other, stop_id=0) != together


def test_greedy_texts_follow_the_largest_logit() -> None:
    sizes, read = load("qwen3")
    sampling = Sampling(temperature=0, max_tokens=5)
    (text,) = sample_batch(sizes, read, [[0]], first_index=0, sampling=sampling, stop_id=-1)
    tokens = [0]
    for _ in range(5):
        tokens.append(int(compute_logits(sizes, read, np.array([tokens]))[0, -1].argmax()))
    assert text == tokens[1:]


def test_tokens_have_the_probabilities_of_the_nucleus() -> None:
    logits = np.tile(np.log(np.array([0.1, 0.5, 0.05, 0.35], np.float32)), (20_000, 1))
    draws = np.random.default_rng(0).random(20_000)
    shares = np.bincount(choose_tokens(logits, draws, Sampling()), minlength=4) / 20_000
    np.testing.assert_allclose(shares, [0.1, 0.5, 0.05, 0.35], atol=0.02)
    shares = np.bincount(choose_tokens(logits, draws, Sampling(top_p=0.8)), minlength=4) / 20_000
    np.testing.assert_allclose(shares, [0, 0.5 / 0.85, 0, 0.35 / 0.85], atol=0.02)
    hot = np.bincount(choose_tokens(logits, draws, Sampling(temperature=100.0)), minlength=4) / 20_000
    np.testing.assert_allclose(hot, 0.25, atol=0.02)


def test_a_text_ends_at_the_stop_token() -> None:
    sizes, read = load("qwen3")
    free = sample_batch(sizes, read, [[0]], first_index=0, sampling=Sampling(max_tokens=12), stop_id=-1)[0]
    stopped = sample_batch(sizes, read, [[0]], first_index=0, sampling=Sampling(max_tokens=12), stop_id=free[4])[0]
    assert stopped == free[: free.index(free[4])]
