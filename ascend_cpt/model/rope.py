"""Reads rotary position embedding fields from a Hugging Face configuration and computes the frequencies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.errors import ConfigError

DEFAULT_THETA = 10000.0
# rope_type → why it is not supported.
_UNSUPPORTED = {
    "dynamic": "its frequencies depend on the length of the text, but a graph is compiled with fixed ones",
    "linear": "it scales all frequencies by the same factor; use yarn instead",
    "longrope": "it has different frequencies for short and long texts, but a graph is compiled with fixed ones",
    "mrope": "it has several positions per token, for images",
}


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's RoPE scaling (`rope_type: llama3`). Lengths are in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (`rope_type: yarn`, arXiv 2309.00071), with the defaults of transformers. Lengths are in tokens.

    Frequencies that make more than `beta_fast` turns in the original length are kept, those that make fewer than
    `beta_slow` are divided by `factor`. `truncate` rounds these limits to whole dimensions.
    """

    factor: float
    original_max_position_embeddings: float
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @property
    def attention_scaling(self) -> float:
        """Factor of queries and of keys (transformers multiplies cos and sin by it)."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._scale(self.mscale) / self._scale(self.mscale_all_dim)
        return self._scale(1.0)

    @property
    def max_length(self) -> int:
        """The longest text for which the frequencies are meant."""
        return int(self.factor * self.original_max_position_embeddings)

    def _scale(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0


Scaling = Llama3Scaling | YarnScaling
_SCALINGS: dict[str, type[Llama3Scaling] | type[YarnScaling]] = {"llama3": Llama3Scaling, "yarn": YarnScaling}


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The base of the rotary frequencies, and optional scaling."""

    theta: float
    scaling: Scaling | None = None

    @property
    def attention_scaling(self) -> float:
        """Factor of queries and of keys, after the rotation. The products of the two have its square."""
        return self.scaling.attention_scaling if isinstance(self.scaling, YarnScaling) else 1.0

    def extends(self, base: Rope) -> bool:
        """Return whether this is `base` with YaRN added."""
        return isinstance(self.scaling, YarnScaling) and base.scaling is None and self.theta == base.theta


def read_rope(config: Mapping[str, Any]) -> Rope:
    """Read `rope_theta` and `rope_scaling`, or `rope_parameters` (transformers 5), of a model configuration.

    Raises:
        ConfigError: the rope type is not supported, or one of its fields is missing, unknown or impossible.
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
    if rope_type not in _SCALINGS:
        reason = f" ({_UNSUPPORTED[rope_type]})" if rope_type in _UNSUPPORTED else ""
        raise ConfigError(
            f"{key}.rope_type: {rope_type} is not supported{reason}; only default, {' and '.join(_SCALINGS)} are"
        )
    scaling = _read_scaling(key, rope_type, given)
    if isinstance(scaling, YarnScaling):
        _check_yarn(key, scaling, theta)
    return Rope(theta=theta, scaling=scaling)


def _read_scaling(key: str, rope_type: str, given: Mapping[str, Any]) -> Scaling:
    scaling_class = _SCALINGS[rope_type]
    defaults = {field.name: field.default for field in fields(scaling_class)}
    missing = [name for name, default in defaults.items() if default is MISSING and given.get(name) is None]
    if missing:
        raise ConfigError(f"{key}: rope_type {rope_type} needs {', '.join(missing)} as in the model's config.json")
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ConfigError(
            f"{key}: {', '.join(unknown)}: unknown for rope_type {rope_type}; known: {', '.join(defaults)}"
        )
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name in values:
        if name == "truncate":
            if not isinstance(values[name], bool):
                raise ConfigError(f"{key}.truncate: expected true or false, got {values[name]!r:.80}")
        else:
            values[name] = read_number(given, name, math.nan)
    return scaling_class(**values)


def _check_yarn(key: str, scaling: YarnScaling, theta: float) -> None:
    """Refuse values for which the frequencies are not defined, or that transformers warns of."""
    if scaling.factor < 1:
        raise ConfigError(f"{key}.factor: {scaling.factor:g} is below 1; give the new length / the original length")
    for name in ("original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"):
        value = getattr(scaling, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{key}.{name}: {value:g} must be above 0")
    if scaling.beta_fast < scaling.beta_slow:
        raise ConfigError(f"{key}: beta_fast {scaling.beta_fast:g} is below beta_slow {scaling.beta_slow:g}")
    if theta <= 1:
        raise ConfigError(f"rope_theta: {theta:g} must be above 1 for rope_type yarn")


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
    """Return the rotary inverse frequencies, shape (head_dim / 2,), in radians per token."""
    # transformers computes in float32 with correctly rounded powers. The same steps here give the same bits.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.power(rope.theta, exponents, dtype=np.float64).astype(np.float32)
    frequencies: NDArray[np.float32] = np.float32(1.0) / powers
    if rope.scaling is None:
        return frequencies
    if isinstance(rope.scaling, YarnScaling):
        kept = _share_kept(rope.scaling, rope.theta, head_dim)
        interpolated = np.float32(1.0) / (np.float32(rope.scaling.factor) * powers)
        frequencies = interpolated * (np.float32(1) - kept) + frequencies * kept
        return frequencies
    return _scale_as_llama3(rope.scaling, frequencies)


def _scale_as_llama3(scaling: Llama3Scaling, frequencies: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale as in Llama 3.1 (`apply_scaling` in Meta's llama-models; `_compute_llama3_parameters` in transformers).

    Wavelengths above original / low_freq_factor are multiplied by `factor`, those below original / high_freq_factor are
    unchanged, and in between the frequencies are interpolated linearly in original / wavelength.
    """
    wavelengths = np.float32(2 * math.pi) / frequencies
    turns = np.float32(scaling.original_max_position_embeddings) / wavelengths
    low, high, factor = (
        np.float32(value) for value in (scaling.low_freq_factor, scaling.high_freq_factor, scaling.factor)
    )
    kept = np.clip((turns - low) / (high - low), np.float32(0), np.float32(1))
    return (np.float32(1) - kept) * frequencies / factor + kept * frequencies


def _share_kept(scaling: YarnScaling, theta: float, head_dim: int) -> NDArray[np.float32]:
    """Return the share of each frequency that YaRN keeps: 1 for fast ones, 0 for slow ones, shape (head_dim / 2,)."""

    def find_dimension(turns: float) -> float:
        """Return the (fractional) dimension that makes `turns` turns in the original length."""
        wavelength = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))

    first, last = find_dimension(scaling.beta_fast), find_dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001  # as in transformers, so that the slope is finite
    dimensions = np.arange(head_dim // 2, dtype=np.float32)
    slope = (dimensions - np.float32(first)) / np.float32(last - first)
    kept: NDArray[np.float32] = np.float32(1) - np.clip(slope, np.float32(0), np.float32(1))
    return kept
