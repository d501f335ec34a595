"""Extends a SentencePiece BPE model (tokenizer.model of Llama 2), and the tokenizer.json beside it.

New pieces have lower scores than all old ones, so old merges come first. Characters that the old model splits into
bytes are learned first, by frequency, because a tokenizer.json can only merge characters of its vocabulary.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ascend_cpt.data.tokenizing.growth.byte_level import (
    TOKENIZER_JSON,
    in_batches,
    read_added_tokens,
    write_tokenizer_json,
)
from ascend_cpt.data.tokenizing.growth.learn_merges import Learned, LearnSettings, Piece, Split, learn_merges
from ascend_cpt.data.tokenizing.growth.model_proto import CONTROL, UNUSED, append_pieces, is_bpe
from ascend_cpt.errors import DataError

TOKENIZER_MODEL = "tokenizer.model"
# New characters cover this share of the characters that the old model splits into bytes, as in SentencePiece.
CHARACTER_COVERAGE = 0.9995
_SPACE = "\u2581"
_DIGIT, _OTHER = "digit", "other"


class SentencePieceTokenizer:
    """A SentencePiece BPE model with byte fallback, and optionally a tokenizer.json with the same vocabulary."""

    kind = "SentencePiece BPE"

    def __init__(self, folder: Path) -> None:
        """Read the model. Raise DataError if it is not a BPE model with byte fallback."""
        import sentencepiece

        path = folder / TOKENIZER_MODEL
        self._folder = folder
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._content = path.read_bytes()
            self._model.LoadFromSerializedProto(self._content)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{path}: not a SentencePiece model: {error}") from error
        size = self._model.vocab_size()
        self._bytes = np.array([self._model.is_byte(k) for k in range(size)])
        if not is_bpe(self._content) or self._bytes.sum() != 256:
            raise DataError(f"{path}: not a SentencePiece BPE model with byte fallback, so it cannot be extended")
        self._texts = {k: self._model.id_to_piece(k) for k in range(size)}
        self._ids = {text: k for k, text in self._texts.items()}
        self._json = self._read_json()
        self.first_id = max(size, *(number + 1 for number in self._list_json_ids().values())) if self._json else size

    def _read_json(self) -> dict[str, Any] | None:
        path = self._folder / TOKENIZER_JSON
        if not path.is_file():
            return None
        try:
            content: dict[str, Any] = orjson.loads(path.read_bytes())
            vocabulary = content["model"]["vocab"]
            is_same = content["model"].get("type") == "BPE" and vocabulary.items() >= self._ids.items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a Hugging Face tokenizer ({error!r})") from error
        if not is_same:
            raise DataError(f"{path}: does not have the vocabulary of {TOKENIZER_MODEL}; remove one of the two files")
        return content

    def _list_json_ids(self) -> dict[str, int]:
        """Return text → id of the pieces and added tokens of the tokenizer.json."""
        if self._json is None:
            return {}
        vocabulary: dict[str, int] = self._json["model"]["vocab"]
        return vocabulary | read_added_tokens(self._json)

    def learn(self, documents: Iterable[str], settings: LearnSettings) -> Learned:
        """Return new characters and pieces learned on `documents`."""
        symbols = _Symbols(self._texts, self._bytes)
        splits = []
        for batch in in_batches(documents):
            splits += [symbols.split(ids) for ids in self._model.encode(batch, out_type=int)]
        characters = symbols.choose_characters(settings)
        chosen = {symbols.numbers[character] for character in characters}
        first = min(symbols.numbers.values(), default=len(self._texts))
        keep = np.ones(len(symbols.texts), bool)
        keep[[k for k in range(first, len(symbols.texts)) if k not in chosen]] = False
        known = set(self._ids) | set(self._list_json_ids())
        rest = LearnSettings(
            num_pieces=settings.num_pieces - len(characters),
            min_count=settings.min_count,
            max_chars=settings.max_chars,
        )
        learned = learn_merges(
            (Split(ids=np.where(keep[split.ids], split.ids, -1), starts=split.starts) for split in splits),
            dict(enumerate(symbols.texts)),
            known.__contains__,
            len,
            rest,
        )
        byte_ids = {int(self._texts[k][3:5], 16): int(k) for k in np.flatnonzero(self._bytes)}

        def split_characters(number: int) -> tuple[int, ...]:
            if number < first:
                return (number,)
            return tuple(byte_ids[byte] for byte in symbols.texts[number].encode("utf-8"))

        pieces = [Piece(text=character, parts=(symbols.numbers[character],)) for character in characters]
        return Learned(
            pieces=tuple(
                Piece(text=piece.text, parts=tuple(old for part in piece.parts for old in split_characters(part)))
                for piece in (*pieces, *learned.pieces)
            ),
            merges=learned.merges,
        )

    def extend(self, learned: Learned) -> dict[str, bytes]:
        """Return the files of the new tokenizer that differ from the old ones, as name → content."""
        lowest = min(self._model.get_score(k) for k in self._texts)
        # Ids of tokens that only the tokenizer.json has.
        names = {number: text for text, number in self._list_json_ids().items()}
        gap = [
            (names.get(number, f"<unused_{number}>"), 0.0, CONTROL if number in names else UNUSED)
            for number in range(len(self._texts), self.first_id)
        ]
        texts = [piece.text for piece in learned.pieces]
        new = [(text, lowest - 1 - k, None) for k, text in enumerate(texts)]
        files = {TOKENIZER_MODEL: append_pieces(self._content, [*gap, *new], self.first_id + len(new))}
        if self._json is not None:
            new_ids = {text: self.first_id + k for k, text in enumerate(texts)}
            merges = list(_list_merges(texts, self._ids | new_ids))
            files[TOKENIZER_JSON] = write_tokenizer_json(self._json, new_ids, merges)
        return files


class _Symbols:
    """The old pieces, and the characters that the old model splits into bytes, numbered from the number of pieces."""

    def __init__(self, texts: dict[int, str], is_byte: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        self.texts = [texts[k] for k in range(len(texts))]
        self.numbers: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self._is_byte = is_byte
        self._edges = [_find_edges(text) for text in self.texts]

    def split(self, ids: list[int]) -> Split:
        """Return a document's symbols, with bytes joined to characters."""
        array = np.array(ids, np.int32)
        if self._is_byte[array].any():
            array = np.array(list(self._join_bytes(ids)), np.int32)
        starts = np.ones(len(array), bool)
        edges = [self._edges[k] for k in array.tolist()]
        for k in range(1, len(edges)):
            begins, first, _ = edges[k]
            last = edges[k - 1][2]
            starts[k] = begins or first != last or first == _DIGIT
        return Split(ids=array, starts=starts)

    def _join_bytes(self, ids: list[int]) -> Iterator[int]:
        pending = bytearray()
        for number in [*ids, -1]:
            if number >= 0 and self._is_byte[number]:
                pending.append(int(self.texts[number][3:5], 16))
                continue
            if pending:
                for character in pending.decode("utf-8", "replace"):
                    yield self._number(character)
                pending.clear()
            if number >= 0:
                yield number

    def _number(self, character: str) -> int:
        self.counts[character] += 1
        if character not in self.numbers:
            self.numbers[character] = len(self.texts)
            self.texts.append(character)
            self._edges.append(_find_edges(character))
        return self.numbers[character]

    def choose_characters(self, settings: LearnSettings) -> list[str]:
        """Return the characters that become pieces, most frequent first. Control and space characters do not."""
        visible = [(count, text) for text, count in self.counts.items() if _is_visible(text)]
        total = sum(count for count, _ in visible)
        usable = sorted(
            (item for item in visible if item[0] >= settings.min_count), key=lambda item: (-item[0], item[1])
        )
        chosen: list[str] = []
        covered = 0
        for count, text in usable:
            if covered >= CHARACTER_COVERAGE * total or len(chosen) == settings.num_pieces:
                break
            chosen.append(text)
            covered += count
        return chosen


def _is_visible(character: str) -> bool:
    return unicodedata.category(character)[0] not in "CZ" and character != "\ufffd"


@cache
def _find_edges(text: str) -> tuple[bool, str, str]:
    """Return whether a piece begins a word, and the scripts of its first and last character."""
    bare = text.lstrip(_SPACE)
    if not bare or re.fullmatch(r"<.+>", text):
        return True, "", ""
    return text.startswith(_SPACE), _find_script(bare[0]), _find_script(bare[-1])


@cache
def _find_script(character: str) -> str:
    """Return the script of a letter, or a common name for all digits and for all other characters.

    Chinese characters and Japanese syllables are one script, as in SentencePiece.
    """
    category = unicodedata.category(character)
    if category == "Nd":
        return _DIGIT
    if category[0] not in "LM":
        return _OTHER
    script = unicodedata.name(character, "?").split()[0]
    return "CJK" if script in ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC") else script


def _list_merges(texts: list[str], ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield all pairs of pieces that give a new piece, in the order of the new pieces.

    A SentencePiece model merges any two neighbours whose concatenation is a piece.
    """
    for text in texts:
        pairs = [(text[:k], text[k:]) for k in range(1, len(text))]
        found = [(left, right) for left, right in pairs if left in ids and right in ids]
        yield from sorted(found, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
