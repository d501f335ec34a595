"""The hasher in C (`kernel.c`), and the compilation of its library."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.selection.words.english import (
    COMMON_IDEOGRAPHS,
    PUNCTUATION,
    WIDE_PUNCTUATION,
    list_contractions,
    simplify_ascii,
    split_words,
)
from ascend_cpt.data.selection.words.hashing import Hasher, Hashes, Scheme, Window, WindowIndex
from ascend_cpt.files import write_whole

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("kernel.c")
_COMPILERS = ("cc", "gcc", "clang")
_OTHER, _SEPARATOR, _DIGIT, _IDEOGRAPH = 0, 1, 2, 4
"""Classes of characters in kernel.c."""
_COMPILED_HASH = ("xxhash", 64)
_TOO_SMALL = -(1 << 63)
_MAX_KEY_BYTES = 256
"""Longest simplified word that is a key in the table of kernel.c."""


class CompiledHasher(Hasher):
    """Does the same in C."""

    _MAX_MISSING = 1 << 12
    _NUM_SLOTS = 1 << 18
    _TABLE_BYTES = 16 << 20

    def __init__(self, library: Path, *, ideographs: bool) -> None:
        super().__init__(ideographs=ideographs)
        self._library = _load_library(library)
        self._classes = _classify_characters(ideographs)
        self._table = self._library.create_table(_address(self._classes), self._NUM_SLOTS, self._TABLE_BYTES)
        if not self._table:
            raise MemoryError("no memory for the table of words")
        self._missing = np.empty(2 * self._MAX_MISSING, np.int64)
        self._set_buffers(1 << 16)
        self._scheme: Scheme | None = None
        self._fill_table()

    def write_words(self, text: str) -> bytes:
        """Return the words of a text, each followed by a space."""
        encoded = text.encode()
        num_missing = ctypes.c_int64()

        def write() -> int:
            length: int = self._library.write_words(
                self._table,
                encoded,
                len(encoded),
                _address(self._out),
                len(self._out),
                _address(self._missing),
                self._MAX_MISSING,
                ctypes.byref(num_missing),
            )
            return _TOO_SMALL if length < 0 else -1 - num_missing.value if num_missing.value else length

        length = self._run(write, encoded)
        return super().write_words(text) if length is None else self._out[:length].tobytes()

    def compute_signature(self, text: str, scheme: Scheme) -> Hashes | None:
        """Return the minima of the hashes of a text's n-grams, or None if it has too few words.

        The array is overwritten by the next call.
        """
        if (scheme.name, scheme.bits) != _COMPILED_HASH:
            return super().compute_signature(text, scheme)
        if scheme is not self._scheme:
            self._scheme = scheme
            self._minima = np.empty(len(scheme.a), np.uint64)
            self._permutations = (_address(scheme.a), _address(scheme.b), len(scheme.a), _address(self._minima))
        encoded = text.encode()

        def sign() -> int:
            count: int = self._library.write_signature(
                self._table, encoded, len(encoded), *self._buffers, scheme.n, *self._more_buffers, *self._permutations
            )
            return count

        count = self._run(sign, encoded)
        if count is None:
            return super().compute_signature(text, scheme)
        return self._minima if count else None

    def hash_ngrams(self, words: bytes, n: int, name: str, bits: int) -> Hashes:
        """Return the hash of each n-gram, with its words joined by spaces."""
        if (name, bits) != _COMPILED_HASH:
            return super().hash_ngrams(words, n, name, bits)
        self._reserve(2 * len(words))
        count = self._library.hash_ngrams(words, len(words), n, _address(self._begins), _address(self._hashes))
        return self._hashes[:count]

    def compute_minima(self, shingles: Hashes, a: Hashes, b: Hashes, bits: int) -> Hashes:
        """Return for each hash function j the minimum of (shingle * a[j] + b[j]) % (2^61 - 1), in its lower `bits`."""
        minima = np.empty(len(a), np.uint64)
        self._library.write_minima(
            _address(shingles),
            len(shingles),
            _address(a),
            _address(b),
            len(a),
            (1 << bits) - 1,
            _address(minima),
        )
        return minima

    def hash_windows(self, words: bytes, weight: int) -> Hashes:
        """Return the hash of each window: the shortest run of words from each word on with at least `weight`."""
        count, _ = self._find_windows(words, weight, None)
        return self._hashes[:count].copy()

    def find_windows(self, words: bytes, weight: int, index: WindowIndex) -> tuple[int, Window | None]:
        """Return the number of windows that the index contains, and the first of them."""
        count, (begin, length, position) = self._find_windows(words, weight, index)
        return count, Window(words[begin : begin + length].decode(), position) if count else None

    def _find_windows(self, words: bytes, weight: int, index: WindowIndex | None) -> tuple[int, list[int]]:
        self._reserve(2 * len(words))
        first = np.zeros(3, np.int64)
        count = self._library.find_windows(
            self._table,
            words,
            len(words),
            weight,
            _address(self._begins),
            None if index is None else _address(index.hashes),
            0 if index is None else len(index.hashes),
            None if index is None else _address(index.bits),
            0 if index is None else index.num_bits_log2,
            _address(first),
            _address(self._hashes) if index is None else None,
        )
        return count, first.tolist()

    def _run(self, function: Callable[[], int], encoded: bytes) -> int | None:
        """Call a function until there is room for its output and the table has its chunks.

        Return its result, or None if this text alone fills the table.
        """
        is_cleared = False
        while (result := function()) < 0:
            if result == _TOO_SMALL:
                self._reserve(2 * len(self._out))
            elif not self._add_missing(encoded, min(-1 - result, self._MAX_MISSING)):
                self._fill_table()
                if is_cleared:
                    return None
                is_cleared = True
        return result

    def _reserve(self, num_bytes: int) -> None:
        """Make room for the words of a text, and one number per word; a word has two bytes with its space."""
        if len(self._out) < num_bytes:
            self._set_buffers(num_bytes)

    def _set_buffers(self, num_bytes: int) -> None:
        self._out = np.empty(num_bytes, np.uint8)
        self._begins, self._hashes = np.empty(num_bytes // 2 + 1, np.int64), np.empty(num_bytes // 2 + 1, np.uint64)
        self._buffers = (_address(self._out), num_bytes, _address(self._missing), self._MAX_MISSING)
        self._more_buffers = (_address(self._begins), _address(self._hashes))

    def _fill_table(self) -> None:
        """Empty the table, except for the contractions."""
        self._library.clear_table(self._table)
        for word, parts in list_contractions().items():
            self._add(word.encode(), parts)

    def _add_missing(self, encoded: bytes, num_missing: int) -> bool:
        """Split the chunks that the table lacks. Return False if they do not fit in it."""
        for begin, end in self._missing[: 2 * num_missing].reshape(-1, 2).tolist():
            key = encoded[begin:end]
            chunk = key.decode()
            words = tuple(split_words(chunk, ideographs=self.ideographs))
            if chunk.isascii() and len(simplified := simplify_ascii(chunk)) <= _MAX_KEY_BYTES:
                key = simplified.encode()
            if not self._add(key, words):
                return False
        return True

    def _add(self, key: bytes, words: tuple[str, ...]) -> bool:
        value = "".join(f"{word} " for word in words).encode()
        return bool(self._library.add_entry(self._table, key, len(key), value, len(value)))


def build_library(folder: Path) -> Path | None:
    """Compile the kernel in `folder` and return the library, or None (after a warning) if this is not possible."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, _COMPILERS), None)
    slower = "deduplication and decontamination run in Python, which is much slower"
    if compiler is None:
        logger.warning("no C compiler (%s) found: %s", ", ".join(_COMPILERS), slower)
        return None
    library = folder / "kernel.so"
    flags = ("-std=c99", "-O3", "-shared", "-fPIC", "-fvisibility=hidden")
    try:
        with write_whole(library) as temporary:
            subprocess.run([compiler, *flags, "-o", str(temporary), str(_SOURCE)], check=True, capture_output=True)
        _load_library(library)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines() or [f"exit code {error.returncode}"]
        logger.warning("%s cannot compile %s (%s): %s", compiler, _SOURCE, lines[0], slower)
        return None
    except OSError as error:
        logger.warning("%s: cannot be built or loaded (%s): %s", library, error, slower)
        return None
    return library


def load_hasher(library: Path | None, *, ideographs: bool) -> Hasher:
    """Return a hasher that uses the library, or Python if there is none."""
    return Hasher(ideographs=ideographs) if library is None else CompiledHasher(library, ideographs=ideographs)


def _classify_characters(ideographs: bool) -> npt.NDArray[np.uint8]:
    """Return the class of each character of the Basic Multilingual Plane."""
    classes = np.full(1 << 16, _OTHER, np.uint8)
    classes[: ord(" ") + 1] = _SEPARATOR
    for char in PUNCTUATION:
        if char.isascii() or (ideographs and char in WIDE_PUNCTUATION):
            classes[ord(char)] = _SEPARATOR
    classes[ord("0") : ord("9") + 1] = _DIGIT
    if ideographs:
        for first, last in zip(COMMON_IDEOGRAPHS[0::3], COMMON_IDEOGRAPHS[2::3], strict=True):
            classes[ord(first) : ord(last) + 1] = _IDEOGRAPH
    return classes


def _address(array: npt.NDArray[Any]) -> int:
    return array.ctypes.data


def _load_library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    unsigned, text = ctypes.c_uint64, ctypes.c_char_p
    for name, result, arguments in (
        ("create_table", pointer, (pointer, unsigned, unsigned)),
        ("clear_table", None, (pointer,)),
        ("add_entry", ctypes.c_int, (pointer, text, ctypes.c_uint32, text, ctypes.c_uint32)),
        ("write_words", number, (pointer, text, number, pointer, number, pointer, number, pointer)),
        ("hash_ngrams", number, (text, number, number, pointer, pointer)),
        ("write_minima", None, (pointer, number, pointer, pointer, number, unsigned, pointer)),
        (
            "write_signature",
            number,
            (pointer, text, number, pointer, number, pointer, number, number, *[pointer] * 4, number, pointer),
        ),
        (
            "find_windows",
            number,
            (pointer, text, number, number, pointer, pointer, number, pointer, ctypes.c_int, pointer, pointer),
        ),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
