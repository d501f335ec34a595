"""Rotary frequencies compared with transformers, and reading the configuration fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_cpt.errors import ConfigError
from ascend_cpt.model.rope import Llama3Scaling, Rope, YarnScaling, compute_inverse_frequencies, read_rope
from ascend_cpt.model.sizes import read_sizes

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
MODELS = ["qwen3", "qwen3_tied", "llama2", "llama3", "llama31", "llama32_tied", "mistral", "qwen25_tied"]
YARN_MODELS = ["qwen3_yarn", "llama_yarn", "qwen25_yarn", "mistral_yarn", "qwen3_moe_yarn"]
LLAMA31: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize("name", MODELS + YARN_MODELS)
def test_inverse_frequencies_equal_those_of_transformers(name: str) -> None:
    sizes = read_sizes(json.loads((REFERENCE / name / "config.json").read_text(encoding="utf-8")))
    expected = np.load(REFERENCE / name / "expected.npz")["inverse_frequencies"]
    frequencies = compute_inverse_frequencies(sizes.rope, sizes.head_dim)
    assert frequencies.dtype == np.float32
    np.testing.assert_array_equal(frequencies, expected)


@pytest.mark.parametrize("name", YARN_MODELS)
def test_attention_scaling_equals_that_of_transformers(name: str) -> None:
    rope = read_sizes(json.loads((REFERENCE / name / "config.json").read_text(encoding="utf-8"))).rope
    expected = float(np.load(REFERENCE / name / "expected.npz")["attention_scaling"])
    assert rope.attention_scaling == pytest.approx(expected, rel=1e-12) and expected > 1


def test_yarn_keeps_fast_frequencies_and_slows_slow_ones() -> None:
    plain = compute_inverse_frequencies(Rope(theta=1e6), 128)
    scaled = compute_inverse_frequencies(read_rope({"rope_theta": 1e6, "rope_scaling": YARN}), 128)
    turns = 32768 * plain / (2 * np.pi)
    # Truncation moves each limit outwards by less than one dimension, which is a factor of 1e6 ** (1 / 64) = 1.24.
    np.testing.assert_array_equal(scaled[turns > 32 * 1.25], plain[turns > 32 * 1.25])
    np.testing.assert_allclose(scaled[turns < 1 / 1.25], plain[turns < 1 / 1.25] / 4, rtol=1e-6)
    between = (turns > 1) & (turns < 32)
    assert between.sum() > 10 and ((scaled < plain) & (scaled > plain / 4))[between].all()


def test_yarn_defaults_and_limits() -> None:
    rope = read_rope({"rope_theta": 1e6, "rope_scaling": {**YARN, "attention_factor": None, "mscale": 0.0}})
    assert rope.attention_scaling == pytest.approx(0.1 * np.log(4) + 1)
    assert rope.scaling == YarnScaling(factor=4, original_max_position_embeddings=32768, mscale=0.0)
    assert isinstance(rope.scaling, YarnScaling) and rope.scaling.max_length == 131072
    assert read_rope({"rope_scaling": {**YARN, "factor": 1}}).attention_scaling == 1.0
    same = read_rope({"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}})
    assert same.attention_scaling == 1.0
    assert read_rope({"rope_scaling": LLAMA31}).attention_scaling == Rope(theta=1e4).attention_scaling == 1.0


def test_what_extends_a_model() -> None:
    base, yarn = Rope(theta=1e6), read_rope({"rope_theta": 1e6, "rope_scaling": YARN})
    assert yarn.extends(base)
    assert not base.extends(yarn) and not yarn.extends(yarn) and not yarn.extends(Rope(theta=1e4))
    assert not read_rope({"rope_theta": 1e6, "rope_scaling": LLAMA31}).extends(base)


def test_scaling_keeps_short_wavelengths_and_stretches_long_ones() -> None:
    plain = compute_inverse_frequencies(Rope(theta=5e5), 128)
    scaled = compute_inverse_frequencies(read_rope({"rope_theta": 5e5, "rope_scaling": LLAMA31}), 128)
    wavelengths = 2 * np.pi / plain
    np.testing.assert_array_equal(scaled[wavelengths < 2048], plain[wavelengths < 2048])
    np.testing.assert_allclose(scaled[wavelengths > 8192], plain[wavelengths > 8192] / 8, rtol=1e-6)
    between = (wavelengths > 2048) & (wavelengths < 8192)
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()
    assert between.any()


@pytest.mark.parametrize(
    ("config", "theta", "is_scaled"),
    [
        ({}, 10000.0, False),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, False),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "default"}}, 5e5, False),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA31}, 5e5, True),
        ({"rope_theta": 5e5, "rope_scaling": {**LLAMA31, "type": "llama3"}}, 5e5, True),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7.0, False),
        ({"rope_parameters": {**LLAMA31, "rope_theta": 7.0}}, 7.0, True),
    ],
)
def test_all_forms_of_the_fields_are_read(config: dict[str, Any], theta: float, is_scaled: bool) -> None:
    rope = read_rope(config)
    assert rope.theta == theta
    scaling = Llama3Scaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_max_position_embeddings=8192)
    assert rope.scaling == (scaling if is_scaled else None)


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"type": "linear", "factor": 2.0}, "linear is not supported .it scales all frequencies by the same factor"),
        ({"type": "dynamic", "factor": 2.0}, "dynamic is not supported .its frequencies depend on the length"),
        ({"rope_type": "longrope", "factor": 2.0}, "longrope is not supported .it has different frequencies for short"),
        ({"rope_type": "su"}, "su is not supported; only default, llama3 and yarn are"),
        ({"rope_type": "yarn", "factor": 4.0}, "rope_type yarn needs original_max_position_embeddings"),
        ({**YARN, "factor": None}, "rope_type yarn needs factor"),
        ({**YARN, "low_freq_factor": 1.0}, "low_freq_factor: unknown for rope_type yarn; known: factor, original_max"),
        ({**YARN, "factor": 0.5}, "factor: 0.5 is below 1"),
        ({**YARN, "factor": "four"}, "factor: expected a number"),
        ({**YARN, "truncate": "no"}, "truncate: expected true or false, got 'no'"),
        ({**YARN, "beta_fast": 0}, "beta_fast: 0 must be above 0"),
        ({**YARN, "attention_factor": -1.0}, "attention_factor: -1 must be above 0"),
        ({**YARN, "original_max_position_embeddings": 0}, "original_max_position_embeddings: 0 must be above 0"),
        ({**YARN, "beta_slow": 64.0}, "beta_fast 32 is below beta_slow 64"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor, high_freq_factor, original_max_position_embeddings"),
        ({**LLAMA31, "beta_fast": 32}, "beta_fast"),
    ],
)
def test_unsupported_fields_are_refused(scaling: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_rope({"rope_scaling": scaling})
