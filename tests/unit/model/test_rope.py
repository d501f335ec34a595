"""Rotary frequencies compared with transformers, and reading the configuration fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_cpt.errors import ConfigError
from ascend_cpt.model.rope import Llama3Scaling, Rope, compute_inverse_frequencies, read_rope
from ascend_cpt.model.sizes import read_sizes

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
MODELS = ["qwen3", "qwen3_tied", "llama2", "llama3", "llama31", "llama32_tied", "mistral", "qwen25_tied"]
LLAMA31: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("name", MODELS)
def test_inverse_frequencies_equal_those_of_transformers(name: str) -> None:
    sizes = read_sizes(json.loads((REFERENCE / name / "config.json").read_text(encoding="utf-8")))
    expected = np.load(REFERENCE / name / "expected.npz")["inverse_frequencies"]
    frequencies = compute_inverse_frequencies(sizes.rope, sizes.head_dim)
    assert frequencies.dtype == np.float32
    np.testing.assert_array_equal(frequencies, expected)


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
        ({"rope_type": "yarn", "factor": 4.0}, "yarn"),
        ({"type": "linear", "factor": 2.0}, "linear"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor, high_freq_factor, original_max_position_embeddings"),
        ({**LLAMA31, "beta_fast": 32}, "beta_fast"),
    ],
)
def test_unsupported_fields_are_refused(scaling: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_rope({"rope_scaling": scaling})
