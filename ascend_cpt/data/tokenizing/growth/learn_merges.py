"""Learns merges that continue those of a BPE tokenizer.

The corpus is split by the old tokenizer. Its tokens are the symbols from which further merges are learned, most
frequent pair first. Every new merge comes after all old ones, so encoding a text with the new tokenizer first gives the
old tokens and then merges some of them. A text in which nothing is merged keeps its ids.

The merges are learned by the BpeTrainer of the tokenizers library. It learns from characters, so each token is replaced
by a character, and each word by a string of such characters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_SEPARATOR = "\x01"
_FIRST_CODE = 0x100
_SURROGATES = range(0xD800, 0xE000)


class Split(NamedTuple):
    """A document, split by the old tokenizer."""

    ids: npt.NDArray[np.int32]
    """Negative ids are not merged."""
    starts: npt.NDArray[np.bool_]
    """Whether a word starts at each id. Pieces do not cross the start of a word."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A new piece of a tokenizer."""

    text: str
    """As in the tokenizer's vocabulary."""
    parts: tuple[int, ...]
    """Ids of the old tokenizer that the piece replaces."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """New pieces in order, and the merges that make them: several for a piece, or none if it is a character."""

    pieces: tuple[Piece, ...]
    merges: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class LearnSettings:
    """How merges are learned."""

    num_pieces: int
    min_count: int
    """A pair that occurs less often in the corpus is not merged."""
    max_chars: int
    """Maximum length of a piece in characters."""


def learn_merges(
    documents: Iterable[Split],
    texts: Mapping[int, str],
    known: Callable[[str], bool],
    count_chars: Callable[[str], int],
    settings: LearnSettings,
) -> Learned:
    """Return up to `settings.num_pieces` new pieces; fewer if no other pair is frequent enough.

    Args:
        documents: The corpus, split by the old tokenizer. All of it is kept in memory, with 4 bytes for a token.
        texts: Text of each id in the vocabulary.
        known: Whether the old vocabulary has a text; pairs that give such a text are not merged.
        count_chars: Number of characters of a text in the vocabulary.
        settings: Number of pieces and limits.
    """
    seen: set[int] = set()
    strings = []
    for document in documents:
        seen.update(np.unique(document.ids[document.ids >= 0]).tolist())
        strings.append(_to_characters(document))
    margin = settings.num_pieces // 10 + 100
    while True:
        num_asked = settings.num_pieces + margin
        merges = _train(strings, len(seen) + num_asked, settings.min_count)
        learned = _select(merges, texts, known, count_chars, settings)
        # Some merges are not usable, so ask for more until there are enough or the corpus has no others.
        if len(learned.pieces) == settings.num_pieces or len(merges) < num_asked:
            return learned
        margin *= 4


def _train(strings: Iterable[str], vocab_size: int, min_count: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the learned merges of two sequences of ids, in order."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_SEPARATOR, "removed")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=min_count, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(strings, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(_to_ids(left), _to_ids(right)) for left, right in merges]


def _select(
    merges: Iterable[tuple[tuple[int, ...], tuple[int, ...]]],
    texts: Mapping[int, str],
    known: Callable[[str], bool],
    count_chars: Callable[[str], int],
    settings: LearnSettings,
) -> Learned:
    """Return the usable merges: both sides exist, and the result is new and not too long."""
    pieces: dict[str, Piece] = {}
    made: set[tuple[int, ...]] = set()
    kept: list[tuple[str, str]] = []
    for left, right in merges:
        if any(len(side) > 1 and side not in made for side in (left, right)):
            continue
        left_text, right_text = ("".join(texts[k] for k in side) for side in (left, right))
        text = left_text + right_text
        if known(text) or count_chars(text) > settings.max_chars:
            continue
        if text not in pieces:
            if len(pieces) == settings.num_pieces:
                break
            pieces[text] = Piece(text=text, parts=left + right)
        made.add(left + right)
        kept.append((left_text, right_text))
    return Learned(pieces=tuple(pieces.values()), merges=tuple(dict.fromkeys(kept)))


def _to_characters(document: Split) -> str:
    """Return a string with one character for each id, and a separator before each word."""
    codes = document.ids.astype(np.int64) + _FIRST_CODE
    codes[codes >= _SURROGATES.start] += len(_SURROGATES)
    codes[document.ids < 0] = ord(_SEPARATOR)
    places = np.flatnonzero(document.starts)
    return np.insert(codes, places, ord(_SEPARATOR)).astype("<u4").tobytes().decode("utf-32-le")


def _to_ids(characters: str) -> tuple[int, ...]:
    codes = (ord(character) for character in characters)
    return tuple(code - _FIRST_CODE - (len(_SURROGATES) if code >= _SURROGATES.stop else 0) for code in codes)
