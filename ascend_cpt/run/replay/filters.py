"""Drops generated texts that are short, repeat themselves, or occur twice, and counts them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

NUM_WORDS = 4
_WORD = re.compile(r"[a-zA-Z0-9_]+|[^\sa-zA-Z0-9_]")


@dataclass(kw_only=True)
class ReplayFilter:
    """Decides for one text after another."""

    min_chars: int
    max_repetition: float
    """Largest share of repeated n-grams of `NUM_WORDS` words."""
    counts: dict[str, int] = field(default_factory=lambda: {"kept": 0, "short": 0, "repetitive": 0, "duplicate": 0})
    _seen: set[bytes] = field(default_factory=set)

    def keeps(self, text: str) -> bool:
        """Return whether a text is kept, and count it."""
        verdict = self._judge(text.strip())
        self.counts[verdict] += 1
        return verdict == "kept"

    def _judge(self, text: str) -> str:
        if len(text) < self.min_chars:
            return "short"
        if measure_repetition(text) > self.max_repetition:
            return "repetitive"
        digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
        if digest in self._seen:
            return "duplicate"
        self._seen.add(digest)
        return "kept"


def measure_repetition(text: str) -> float:
    """Return the share of the n-grams of words that occurred before; a character such as 字 or ( is a word."""
    words = _WORD.findall(text)
    grams = [tuple(words[start : start + NUM_WORDS]) for start in range(len(words) - NUM_WORDS + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
