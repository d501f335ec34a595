"""Words equal those of datatrove, and the kernel in C computes the same as Python."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_cpt.data.selection.words import compiled, english
from ascend_cpt.data.selection.words.compiled import CompiledHasher, build_library, load_hasher
from ascend_cpt.data.selection.words.english import list_contractions, split_words
from ascend_cpt.data.selection.words.hashing import HASH_FUNCTIONS, Hasher, Scheme, WindowIndex

REFERENCE = json.loads((Path(__file__).parents[3] / "reference/minhash/reference.json").read_text(encoding="utf-8"))
FRAGMENTS = [
    *list_contractions(), "shouldntve", "Don't", "£", "5km²", "1,2.3", "0", "12KM", "x1", "\u2018s", "'s", "ΑΣ", "Σ’",
    "İ", "é", "中文", "。", "漢，字", "\u037e", "≠", "\u0301", "\u200b", "\u2003", "\x01", "\x1c", "\x7f", "\x85",
    "\xa0", "١٢", "ﬁ", "😀", "\U00020001", "\uf900", "한", "９", "9" * 300 + "a", "y" * 300 + "1", " ", "\n", ".", ",",
    "-", "A", "b", "z9",
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=25).map("".join)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = build_library(tmp_path_factory.mktemp("kernel"))
    if built is None:
        pytest.skip("no C compiler")
    return built


@pytest.fixture(scope="session")
def hashers(library: Path) -> dict[bool, tuple[Hasher, Hasher]]:
    """By `ideographs`: the hashers in Python and in C."""
    return {flag: (Hasher(ideographs=flag), load_hasher(library, ideographs=flag)) for flag in (False, True)}


def test_words_are_those_of_datatrove(library: Path) -> None:
    for text, words in zip(REFERENCE["texts"], REFERENCE["words"], strict=False):
        assert list(split_words(text)) == words
        assert CompiledHasher(library, ideographs=False).write_words(text).decode() == "".join(f"{w} " for w in words)


@settings(max_examples=300, deadline=None)
@given(chunk=st.one_of(st.text("ak0mgsth", max_size=6), st.text(st.characters(categories=["L"]), max_size=6)))
def test_shortcuts_equal_the_patterns(chunk: str) -> None:
    rules = english._load_rules()
    if chunk and chunk not in rules.contractions and unicodedata.is_normalized("NFD", chunk):
        found = rules.suffix.search(chunk)
        end = found.start() if found else len(chunk)
        assert list(english._split_chunk(chunk)) == [part for part in (chunk[:end], chunk[end:]) if part]
        assert not rules.prefix.search(chunk) and not list(rules.infix.finditer(chunk))


def test_ideographs_are_words() -> None:
    assert list(split_words("中文，mixed文字123。", ideographs=True)) == ["中", "文", "mixed", "文", "字", "0"]
    assert list(split_words("中文，mixed文字123。")) == ["中文", "mixed文字0"]


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, ideographs=st.booleans(), n=st.integers(1, 6), weight=st.integers(1, 9), pick=st.integers(0, 30))
def test_the_kernel_equals_python(
    hashers: dict[bool, tuple[Hasher, Hasher]], text: str, ideographs: bool, n: int, weight: int, pick: int
) -> None:
    slow, fast = hashers[ideographs]
    words = slow.write_words(text)
    assert fast.write_words(text) == words
    generator = np.random.default_rng(n)
    a, b = (generator.integers(1, (1 << 61) - 1, 20, dtype=np.uint64) for _ in "ab")
    for name, bits in HASH_FUNCTIONS:
        scheme = Scheme(n, name, bits, a, b)
        expected, found = (hasher.compute_signature(text, scheme) for hasher in (slow, fast))
        assert np.array_equal(expected, found) if expected is not None else found is None
    windows = slow.hash_windows(words, weight)
    assert np.array_equal(fast.hash_windows(words, weight), windows)
    index = WindowIndex(np.unique(windows[pick : pick + 3]))
    count, first = slow.find_windows(words, weight, index)
    assert (count, first) == fast.find_windows(words, weight, index)
    assert count == np.isin(windows, index.hashes).sum()


def test_minima_at_the_ends_of_the_range(library: Path) -> None:
    """Sums around multiples of 2^61 - 1, and around 2^64, where the comparison of the kernel wraps."""
    prime = (1 << 61) - 1
    values = [
        (base + step) % (1 << 64) for base in (0, prime, 2 * prime, 7 * prime, 8 * prime) for step in range(-9, 10)
    ]
    ones, zeros = np.ones(1, np.uint64), np.zeros(1, np.uint64)
    rest = np.full(100, prime // 2, np.uint64)
    slow, fast = Hasher(ideographs=False), load_hasher(library, ideographs=False)
    for value in values:
        shingles = np.append(rest, np.uint64(value))
        expected = slow.compute_minima(shingles, ones, zeros, 64)
        assert expected[0] == min(prime // 2, value % prime)
        assert np.array_equal(fast.compute_minima(shingles, ones, zeros, 64), expected)


def test_a_full_table_is_emptied(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledHasher, "_TABLE_BYTES", 12_000)
    hasher, slow = load_hasher(library, ideographs=False), Hasher(ideographs=False)
    for text in (
        "é1 " * 3,
        " ".join(f"ä{k}x{'é' * 40}" for k in range(60)),
        " ".join(f"ö{k}" for k in range(3000)),
        "1x",
    ):
        assert hasher.write_words(text) == slow.write_words(text)


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiled, "_COMPILERS", ("no-such-compiler",))
    assert build_library(tmp_path) is None and "no C compiler (no-such-compiler) found" in caplog.text
    monkeypatch.setenv("CC", "false")
    assert build_library(tmp_path) is None and "false cannot compile" in caplog.text
    monkeypatch.setenv("CC", "no-such-compiler")
    assert build_library(tmp_path) is None and not list(tmp_path.iterdir())
