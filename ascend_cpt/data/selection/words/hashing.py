"""Hashes of the words of a text: n-grams for MinHash and windows for decontamination.

`Hasher` does this in Python and NumPy. `compiled.CompiledHasher` does the same in C, many times faster.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from ascend_cpt.data.selection.words.english import COMMON_IDEOGRAPHS, split_words

Hashes = npt.NDArray[np.uint64]

WORD_WEIGHT = 2
"""Weight of a word in a window; an ideograph weighs 1."""
HASH_FUNCTIONS: dict[tuple[str, int], Callable[[bytes], int]] = {
    ("xxhash", 64): xxhash.xxh64_intdigest,
    ("xxhash", 32): xxhash.xxh32_intdigest,
    ("sha1", 64): lambda text: int.from_bytes(hashlib.sha1(text, usedforsecurity=False).digest()[:8], "little"),
    ("sha1", 32): lambda text: int.from_bytes(hashlib.sha1(text, usedforsecurity=False).digest()[:4], "little"),
}
"""datatrove's hash functions for n-grams, by name and bits."""

_MERSENNE = np.uint64((1 << 61) - 1)
_MINIMA_BLOCK = 1 << 10
_FILTER_BITS_PER_HASH = 32
_IDEOGRAPH = re.compile(f"[{COMMON_IDEOGRAPHS}]")


class Scheme(NamedTuple):
    """How signatures are computed."""

    n: int
    """Words of an n-gram."""
    name: str
    bits: int
    """The hash function for n-grams; see HASH_FUNCTIONS."""
    a: Hashes
    b: Hashes
    """Parameters of the permutations: hash → (hash * a + b) % (2^61 - 1)."""


class Window(NamedTuple):
    """A part of a text that an index contains."""

    text: str
    """Its words."""
    place: int
    """Position of its hash in the index."""


class WindowIndex:
    """Hashes of windows, sorted and distinct, and a bit field that excludes most other hashes."""

    def __init__(self, hashes: Hashes, bits: npt.NDArray[np.uint8] | None = None) -> None:
        self.hashes = hashes
        self.bits = _make_bits(hashes) if bits is None else bits
        self.num_bits_log2 = (8 * len(self.bits)).bit_length() - 1


class Hasher:
    """Splits texts into words (see `split_words`) and hashes them, in Python."""

    def __init__(self, *, ideographs: bool) -> None:
        self.ideographs = ideographs

    def write_words(self, text: str) -> bytes:
        """Return the words of a text, each followed by a space."""
        return "".join(f"{word} " for word in split_words(text, ideographs=self.ideographs)).encode()

    def hash_ngrams(self, words: bytes, n: int, name: str, bits: int) -> Hashes:
        """Return the hash of each n-gram, with its words joined by spaces."""
        function = HASH_FUNCTIONS[name, bits]
        begins = _find_begins(words)
        pairs = zip(begins[:-n].tolist(), begins[n:].tolist(), strict=True)
        return np.fromiter((function(words[begin : end - 1]) for begin, end in pairs), np.uint64)

    def compute_minima(self, shingles: Hashes, a: Hashes, b: Hashes, bits: int) -> Hashes:
        """Return for each hash function j the minimum of (shingle * a[j] + b[j]) % (2^61 - 1), in its lower `bits`."""
        minima = np.full(len(a), np.iinfo(np.uint64).max)
        for begin in range(0, len(shingles), _MINIMA_BLOCK):
            values = (shingles[begin : begin + _MINIMA_BLOCK, None] * a + b) % _MERSENNE
            values &= np.uint64((1 << bits) - 1)
            np.minimum(minima, values.min(axis=0), out=minima)
        return minima

    def compute_signature(self, text: str, scheme: Scheme) -> Hashes | None:
        """Return the minima of the hashes of a text's n-grams, or None if it has too few words.

        The array is overwritten by the next call.
        """
        shingles = self.hash_ngrams(self.write_words(text), scheme.n, scheme.name, scheme.bits)
        return self.compute_minima(shingles, scheme.a, scheme.b, scheme.bits) if len(shingles) else None

    def hash_windows(self, words: bytes, weight: int) -> Hashes:
        """Return the hash of each window: the shortest run of words from each word on with at least `weight`."""
        spans = _find_windows(words, weight, self.ideographs)
        return np.fromiter((xxhash.xxh64_intdigest(words[begin:end]) for begin, end in spans.tolist()), np.uint64)

    def find_windows(self, words: bytes, weight: int, index: WindowIndex) -> tuple[int, Window | None]:
        """Return the number of windows that the index contains, and the first of them."""
        hashes = self.hash_windows(words, weight)
        places = np.searchsorted(index.hashes, hashes)
        is_known = np.zeros(len(hashes), bool)
        inside = places < len(index.hashes)
        is_known[inside] = index.hashes[places[inside]] == hashes[inside]
        if not is_known.any():
            return 0, None
        first = int(np.argmax(is_known))
        begin, end = _find_windows(words, weight, self.ideographs)[first].tolist()
        return int(is_known.sum()), Window(words[begin:end].decode(), int(places[first]))


def _find_begins(words: bytes) -> npt.NDArray[np.int64]:
    """Return the begin of each word and, behind them, the end of the last one."""
    ends = np.flatnonzero(np.frombuffer(words, np.uint8) == ord(" ")) + 1
    return np.concatenate([np.zeros(1, np.int64), ends])


def _find_windows(words: bytes, weight: int, has_ideographs: bool) -> npt.NDArray[np.int64]:
    """Return the begin and end of each window in `words`."""
    begins = _find_begins(words)
    split = words.decode().split(" ")[:-1]
    weights = [1 if has_ideographs and _IDEOGRAPH.fullmatch(word) else WORD_WEIGHT for word in split]
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(weights, np.int64))])
    after = np.searchsorted(sums, sums + weight)
    is_whole = after < len(sums)
    return np.stack([begins[is_whole], begins[after[is_whole]] - 1], 1)


def _make_bits(hashes: Hashes) -> npt.NDArray[np.uint8]:
    num_bits = 1 << max((len(hashes) * _FILTER_BITS_PER_HASH).bit_length(), 16)
    field = np.zeros(num_bits // 8, np.uint8)
    places = hashes & np.uint64(num_bits - 1)
    masks = np.uint8(1) << (places & np.uint64(7)).astype(np.uint8)
    np.bitwise_or.at(field, (places >> np.uint64(3)).astype(np.int64), masks)
    return field
