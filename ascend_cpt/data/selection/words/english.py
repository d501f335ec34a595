"""Splits text into words like datatrove 0.10.1 for English: `simplify_text`, then spaCy's tokenizer.

`english.json` contains spaCy's rules (MIT licence, see the file), which `tests/reference/make_minhash_reference.py`
extracts. Most of them concern punctuation, which has been removed before; the rest split symbols from words, units from
numbers, and contractions whose apostrophe is missing.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

COMMON_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff"
"""Han characters that are not changed, as ranges of a character class."""
IDEOGRAPHS = COMMON_IDEOGRAPHS + "\uf900-\ufaff\U00020000-\U000323af"
"""Han characters."""
WIDE_PUNCTUATION = "、。〈〉《》「」【】！％（），．：；？～"
"""Full-width characters of PUNCTUATION, which Chinese text has between characters instead of spaces."""

PUNCTUATION = (
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    "«´»–—’“”„…∶━►" + WIDE_PUNCTUATION + "１"
    "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x0b\x0c"
    + "".join(map(chr, (*range(13, 32), *range(127, 160))))
)  # fmt: skip
"""Characters that datatrove replaces with spaces."""

_AS_SPACES = str.maketrans(dict.fromkeys(PUNCTUATION, " "))
_NEW_DIGITS = (
    "\U00010d40-\U00010d49\U000116d0-\U000116e3\U00011bf0-\U00011bf9\U00011de0-\U00011de9"
    "\U00011f50-\U00011f59\U00016130-\U00016139\U00016d70-\U00016d79\U0001ccf0-\U0001ccf9"
    "\U0001e4f0-\U0001e4f9\U0001e5f1-\U0001e5fa"
)
"""Digits that Unicode added after the version of Python 3.11."""
_DIGIT = rf"[\d{_NEW_DIGITS}]"
_NUMBER = re.compile(rf"{_DIGIT}+(?:[.,،٫⎖⎗⎘]{_DIGIT}+)?")
_WIDE = re.compile(f"([{IDEOGRAPHS}])|[{WIDE_PUNCTUATION}]")
_RULES_FILE = Path(__file__).with_name("english.json")


def split_words(text: str, *, ideographs: bool = False) -> Iterator[str]:
    """Yield the simplified words of a text.

    Letters are in lower case and without diacritics, a number is `0`, and punctuation is left out. With `ideographs`,
    each Han character is a word; otherwise, Chinese text is split only at punctuation, as by datatrove for English.
    """
    if ideographs:
        text = _WIDE.sub(lambda found: f" {found[1] or ''} ", text)
    text = _NUMBER.sub("0", text.lower()).translate(_AS_SPACES)
    for chunk in text.split():
        simplified = chunk if chunk.isascii() else _remove_marks(chunk)
        if simplified:
            yield from _simplified_words(simplified)


def simplify_ascii(word: str) -> str:
    """Simplify ASCII text without punctuation outside of numbers."""
    return _NUMBER.sub("0", word.lower())


def _simplified_words(chunk: str) -> Iterator[str]:
    """Yield the words of simplified text without spaces."""
    words = _split_chunk(chunk)
    if "‘s" not in chunk:
        yield from words
        return
    # spaCy joins these two again, which its rules list as one word.
    last = ""
    for word in words:
        if last == "‘" and word == "s":
            last = "‘s"
            continue
        if last:
            yield last
        last = word
    yield last


def list_contractions() -> dict[str, tuple[str, ...]]:
    """Return words that consist of letters and are split, such as `dont`, and their parts."""
    contractions = _load_rules().contractions
    return {word: parts for word, parts in contractions.items() if word.isascii() and len(parts) > 1}


class _Rules(NamedTuple):
    prefix: re.Pattern[str]
    suffix: re.Pattern[str]
    infix: re.Pattern[str]
    units: frozenset[str]
    """Units that are split from a number."""
    contractions: dict[str, tuple[str, ...]]
    """Words that are split into these parts, or kept if there is one part."""


@functools.cache
def _load_rules() -> _Rules:
    record = json.loads(_RULES_FILE.read_text(encoding="utf-8"))
    return _Rules(
        re.compile(record["prefix"]),
        re.compile(record["suffix"]),
        re.compile(record["infix"]),
        frozenset(record["units"]),
        {word: tuple(parts) for word, parts in record["contractions"].items()},
    )


def _remove_marks(text: str) -> str:
    """Decompose the characters and remove the diacritics."""
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(char for char in decomposed if unicodedata.category(char) != "Mn")


def _split_chunk(chunk: str) -> Iterator[str]:
    """Split text without spaces: affixes one at a time from both ends, then the rest at infixes."""
    rules = _load_rules()
    if chunk in rules.contractions:
        yield from rules.contractions[chunk]
        return
    # The patterns are slow. No pattern matches among letters, and in ASCII letters and digits only the one for units.
    if chunk.isalpha():
        yield chunk
        return
    if chunk.isascii() and chunk.isalnum():
        number, zero, unit = chunk.rpartition("0")
        yield from (number + zero, unit) if unit in rules.units else (chunk,)
        return
    suffixes: list[str] = []
    rest = chunk
    while rest and rest not in rules.contractions:
        if (found := rules.prefix.search(rest)) and found.end():
            yield rest[: found.end()]
            rest = rest[found.end() :]
        elif (found := rules.suffix.search(rest)) and found.start() < len(rest):
            suffixes.append(rest[found.start() :])
            rest = rest[: found.start()]
        else:
            break
    if rest in rules.contractions:
        yield from rules.contractions[rest]
    else:
        yield from _split_infixes(rest, rules.infix)
    yield from reversed(suffixes)


def _split_infixes(text: str, infix: re.Pattern[str]) -> Iterator[str]:
    begin = 0
    for found in infix.finditer(text):
        if begin == 0 and found.start() == 0:
            continue
        if begin < found.start():
            yield text[begin : found.start()]
        if found[0]:
            yield found[0]
        begin = found.end()
    if begin < len(text):
        yield text[begin:]
