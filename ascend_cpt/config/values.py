"""Parses and formats configuration values: `300B` tokens, `1e-5`, `every: 100 steps`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_COUNT_PATTERN = re.compile(r"^\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE][+]?[0-9]+)?)\s*([kKmMbBgGtT]?)\s*$")
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_INTERVAL_PATTERN = re.compile(r"^\s*(.+?)\s*(steps?|tokens?)?\s*$")
_PATIENCE_PATTERN = re.compile(r"^\s*(.+?)\s*(steps?|tokens?|validations?)?\s*$")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An interval of `count` tokens or `count` steps."""

    count: int
    unit: str  # "tokens" or "steps"

    def to_steps(self, tokens_per_step: int) -> int:
        """Return the interval in optimizer steps, rounded to the nearest step and at least 1."""
        if self.unit == "steps":
            return self.count
        return max(1, round(self.count / tokens_per_step))

    def __str__(self) -> str:
        return f"{self.count} {self.unit}"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a validation value may stay beyond its limit: `count` tokens, steps or validations."""

    count: int
    unit: str  # "tokens", "steps" or "validations"

    def to_steps(self, tokens_per_step: int) -> int | None:
        """Return the patience in optimizer steps, rounded like an `Interval`, or None if given in validations."""
        if self.unit == "validations":
            return None
        return Interval(count=self.count, unit=self.unit).to_steps(tokens_per_step)

    def __str__(self) -> str:
        return f"{self.count} {self.unit}"


def to_steps(interval: Interval | None, tokens_per_step: int) -> int | None:
    """Return an optional interval in optimizer steps."""
    return None if interval is None else interval.to_steps(tokens_per_step)


def parse_count(value: object) -> int:
    """Parse a whole number: `300B`, `1.6M`, `1_638_400`, `1e9` or an int.

    K, M, B (or G) and T stand for 10^3, 10^6, 10^9 and 10^12.

    Raises:
        ValueError: the value is malformed, negative, or not a whole number.
    """
    if isinstance(value, bool):
        raise ValueError(f"expected a number such as 300B, got {value!r}")
    if isinstance(value, int):
        number: float = value
    elif isinstance(value, float):
        number = value
    else:
        match = _COUNT_PATTERN.match(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"expected a number such as 1.6M or 300B, got {value!r}")
        # Scaled before rounding, because 1.6M must be exactly 1,600,000.
        number = round(float(match[1].replace("_", "").replace(",", "")) * _SCALES[match[2].lower()], 6)
    if not math.isfinite(number) or number < 0 or number != int(number):
        raise ValueError(f"expected a whole number that is not negative, got {value!r}")
    return int(number)


def parse_interval(value: object) -> Interval:
    """Parse an interval: `1B`, `4M tokens`, `100 steps` or a number of tokens.

    Raises:
        ValueError: the interval is malformed or zero.
    """
    count, unit = _split_unit(_INTERVAL_PATTERN, value)
    if count == 0:
        raise ValueError(f"expected an interval above zero such as 1B or '100 steps', got {value!r}")
    return Interval(count=count, unit=unit)


def parse_patience(value: object) -> Patience:
    """Parse a patience: an interval as for `parse_interval`, or `3 validations`.

    Raises:
        ValueError: the patience is malformed or zero.
    """
    count, unit = _split_unit(_PATIENCE_PATTERN, value)
    if count == 0:
        raise ValueError(
            f"expected a patience above zero such as 1B, '100 steps' or '3 validations', got {value!r}; remove the key "
            "to stop at the first validation beyond the limit"
        )
    return Patience(count=count, unit=unit)


def _split_unit(pattern: re.Pattern[str], value: object) -> tuple[int, str]:
    """Return the count and the plural unit (tokens by default) in text such as `100 steps`."""
    match = pattern.match(value) if isinstance(value, str) else None
    text, unit = (match[1], match[2] or "tokens") if match else (value, "tokens")
    return parse_count(text), unit.rstrip("s") + "s"


def parse_float(value: object) -> float:
    """Parse a float from a number or from text such as `1e-5`, which YAML 1.1 reads as a string.

    Raises:
        ValueError: the value is not a number.
    """
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {value!r}")
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    raise ValueError(f"expected a number, got {value!r}")


def format_count(count: float) -> str:
    """Return a count rounded to three digits: 950, 40.9K, 1.64M, 300B."""
    return _shorten(count, ("", "K", "M", "B", "T"))


def format_number(count: int, noun: str) -> str:
    """Return `1 <noun>` or `N <noun>s`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_rows(count: int) -> str:
    """Return `1 row` or `N rows`."""
    return format_number(count, "row")


def format_bytes(count: float) -> str:
    """Return a size rounded to three digits, in decimal units: 950 B, 40.9 KB, 17.3 MB, 865 GB."""
    return _shorten(round(count), (" B", " KB", " MB", " GB", " TB"))


def _shorten(number: float, units: tuple[str, ...]) -> str:
    """Return a number rounded to three digits in the largest unit (steps of 1000) that it reaches."""
    number = float(f"{number:.3g}")  # rounded before the unit is chosen: 999,999 is 1M, not 1000K
    exponent = next((k for k in range(len(units) - 1, 0, -1) if abs(number) >= 1000**k), 0)
    text = f"{number / 1000**exponent:.3g}"
    if "e" in text:
        text = f"{number / 1000**exponent:,.0f}"
    return text + units[exponent]
