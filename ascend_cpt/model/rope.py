"""Reads rotary position embedding fields from a Hugging Face configuration and computes the frequencies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.errors import ConfigError

DEFAULT_THETA = 10000.0


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's RoPE scaling (`rope_type: llama3`). Lengths are in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The base of the rotary frequencies, and optional scaling."""

    theta: float
    scaling: Llama3Scaling | None = None


def read_rope(config: Mapping[str, Any]) -> Rope:
    """Read `rope_theta` and `rope_scaling`, or `rope_parameters` (transformers 5), of a model configuration.

    Raises:
        ConfigError: the rope type is neither default nor llama3, or a llama3 field is missing or unknown.
    """
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    section = config.get(key) or {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{key}: expected names and values in the model's configuration, got {section!r:.80}")
    given = dict(section)
    theta = read_number(
        {"rope_theta": given.pop("rope_theta", None) or config.get("rope_theta") or None}, "rope_theta", DEFAULT_THETA
    )
    old_name = given.pop("type", None)
    rope_type = given.pop("rope_type", None) or old_name or "default"
    if rope_type == "default":
        return Rope(theta=theta)
    if rope_type != "llama3":
        raise ConfigError(f"{key}.rope_type: {rope_type} is not supported; only default and llama3 are")
    names = [field.name for field in fields(Llama3Scaling)]
    missing = [name for name in names if name not in given]
    if missing:
        raise ConfigError(f"{key}: rope_type llama3 needs {', '.join(missing)} as in the model's config.json")
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ConfigError(f"{key}: {', '.join(unknown)}: unknown for rope_type llama3; known: {', '.join(names)}")
    return Rope(theta=theta, scaling=Llama3Scaling(**{name: read_number(given, name, math.nan) for name in names}))


def read_number(config: Mapping[str, Any], key: str, default: float) -> float:
    """Return a number from a model configuration. Text such as "1e-6" is accepted.

    Raises:
        ConfigError: the value is not a finite number.
    """
    value = config.get(key)
    try:
        number = float(default if value is None else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{key}: expected a number in the model's configuration, got {value!r:.80}")
    return number


def compute_inverse_frequencies(rope: Rope, head_dim: int) -> NDArray[np.float32]:
    """Return the rotary inverse frequencies, shape (head_dim / 2,), in radians per token.

    Scaling as in Llama 3.1 (`apply_scaling` in Meta's llama-models; `_compute_llama3_parameters` in transformers):
    wavelengths above original / low_freq_factor are multiplied by `factor`, those below original / high_freq_factor are
    unchanged, and in between the frequencies are interpolated linearly in original / wavelength.
    """
    # transformers computes in float32 with correctly rounded powers. The same steps here give the same bits.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.power(rope.theta, exponents, dtype=np.float64).astype(np.float32)
    frequencies: NDArray[np.float32] = np.float32(1.0) / powers
    if rope.scaling is None:
        return frequencies
    scaling = rope.scaling
    wavelengths = np.float32(2 * math.pi) / frequencies
    turns = np.float32(scaling.original_max_position_embeddings) / wavelengths
    low, high, factor = (
        np.float32(value) for value in (scaling.low_freq_factor, scaling.high_freq_factor, scaling.factor)
    )
    kept = np.clip((turns - low) / (high - low), np.float32(0), np.float32(1))
    return (np.float32(1) - kept) * frequencies / factor + kept * frequencies
