"""Values as people write them in a recipe: `300B` tokens, `1e-5`, `every: 100 steps`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_COUNT_PATTERN = re.compile(r"^\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE][+]?[0-9]+)?)\s*([kKmMbBgGtT]?)\s*$")
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_INTERVAL_PATTERN = re.compile(r"^\s*(.+?)\s*(steps?|tokens?)?\s*$")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """How often something happens: every `count` tokens or every `count` steps."""

    count: int
    unit: str  # "tokens" or "steps"

    def to_steps(self, tokens_per_step: int) -> int:
        """Return the interval in optimizer steps, at least 1 (tokens are rounded to the nearest step)."""
        if self.unit == "steps":
            return self.count
        return max(1, round(self.count / tokens_per_step))

    def __str__(self) -> str:
        return f"{self.count} {self.unit}"


def to_steps(interval: Interval | None, tokens_per_step: int) -> int | None:
    """Return an interval that may not be given in optimizer steps."""
    return None if interval is None else interval.to_steps(tokens_per_step)


def parse_count(value: object) -> int:
    """Return a whole number from `300B`, `1.6M`, `1_638_400`, `1e9` or an int.

    K, M, B (or G) and T stand for 10^3, 10^6, 10^9 and 10^12.

    Raises:
        ValueError: when it is no such number, is negative or is not whole.
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
        # Scaled before rounding: 1.6M must be exactly 1,600,000.
        number = round(float(match[1].replace("_", "").replace(",", "")) * _SCALES[match[2].lower()], 6)
    if not math.isfinite(number) or number < 0 or number != int(number):
        raise ValueError(f"expected a whole number that is not negative, got {value!r}")
    return int(number)


def parse_interval(value: object) -> Interval:
    """Return an `Interval` from `1B`, `4M tokens`, `100 steps` or a number (tokens).

    Raises:
        ValueError: when it is no such interval or is zero.
    """
    match = _INTERVAL_PATTERN.match(value) if isinstance(value, str) else None
    text, unit = (match[1], match[2] or "tokens") if match else (value, "tokens")
    count = parse_count(text)
    if count == 0:
        raise ValueError(f"expected an interval above zero such as 1B or '100 steps', got {value!r}")
    return Interval(count=count, unit=unit.rstrip("s") + "s")


def parse_float(value: object) -> float:
    """Return a float from a number or from text such as `1e-5` (which YAML 1.1 reads as text).

    Raises:
        ValueError: when it is no number.
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
    """Return a count for people: 950, 40.9K, 1.64M, 300B."""
    if count >= 1000:
        return "".join(_scale(count, ("K", "M", "B", "T")))
    return f"{count:.3g}" if isinstance(count, float) else str(count)


def format_bytes(count: float) -> str:
    """Return a size for people, in decimal units: 950 B, 40.9 KB, 17.3 MB, 865 GB."""
    return " ".join(_scale(count, ("KB", "MB", "GB", "TB"))) if count >= 1000 else f"{count:.0f} B"


def _scale(count: float, suffixes: tuple[str, ...]) -> tuple[str, str]:
    """Return a count of at least 1000 in three digits, and its suffix: 999,999 is 1M, never 1e+03K."""
    for power, suffix in enumerate(suffixes, start=1):
        text = f"{count / 1000**power:.3g}"
        if float(text) < 1000:
            return text, suffix
    return f"{count / 1000 ** len(suffixes):,.0f}", suffixes[-1]
