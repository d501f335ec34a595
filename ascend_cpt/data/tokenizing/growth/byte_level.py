"""Extends a byte-level BPE tokenizer (tokenizer.json of Qwen and Llama 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ascend_cpt.data.tokenizing.growth.learn_merges import Learned, LearnSettings, Split, learn_merges
from ascend_cpt.errors import DataError

TOKENIZER_JSON = "tokenizer.json"
_BATCH_DOCUMENTS = 256


class ByteLevelTokenizer:
    """A tokenizer.json whose model is a byte-level BPE.

    New ids follow the largest id of the tokenizer, which may be that of an added token.
    """

    kind = "byte-level BPE"

    def __init__(self, folder: Path) -> None:
        """Read the tokenizer. Raise DataError if it is not a byte-level BPE."""
        from tokenizers import Tokenizer

        path = folder / TOKENIZER_JSON
        self._folder = folder
        try:
            self._content: dict[str, Any] = orjson.loads(path.read_bytes())
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise DataError(f"{path}: the tokenizers library cannot load it: {error}") from error
        if self._content["model"].get("type") != "BPE" or "ByteLevel" not in _list_types(self._content):
            raise DataError(
                f"{path}: not a byte-level BPE tokenizer; only these and SentencePiece BPE models can be extended"
            )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._vocabulary: dict[str, int] = self._content["model"]["vocab"]
        self._added = read_added_tokens(self._content)
        self.first_id = max((*self._vocabulary.values(), *self._added.values())) + 1

    def learn(self, documents: Iterable[str], settings: LearnSettings) -> Learned:
        """Return new pieces and merges learned on `documents`."""
        return learn_merges(
            self._split(documents),
            {number: text for text, number in self._vocabulary.items()},
            lambda text: text in self._vocabulary or text in self._added,
            count_characters,
            settings,
        )

    def _split(self, documents: Iterable[str]) -> Iterator[Split]:
        added = np.array(sorted(self._added.values()), np.int32)
        for batch in in_batches(documents):
            for encoding in self._tokenizer.encode_batch(batch, add_special_tokens=False):
                ids = np.array(encoding.ids, np.int32)
                words = np.array(encoding.word_ids, np.int64)
                ids[np.isin(ids, added)] = -1
                yield Split(ids=ids, starts=np.diff(words, prepend=-1) != 0)

    def extend(self, learned: Learned) -> dict[str, bytes]:
        """Return the files of the new tokenizer that differ from the old ones, as name → content."""
        new_ids = {piece.text: self.first_id + k for k, piece in enumerate(learned.pieces)}
        files = {TOKENIZER_JSON: write_tokenizer_json(self._content, new_ids, learned.merges)}
        # The files of transformers' slow tokenizers, which some models also have.
        vocabulary, merges = self._folder / "vocab.json", self._folder / "merges.txt"
        if vocabulary.is_file():
            files[vocabulary.name] = orjson.dumps(orjson.loads(vocabulary.read_bytes()) | new_ids)
        if merges.is_file():
            lines = merges.read_text(encoding="utf-8").rstrip("\n").split("\n")
            lines += [f"{left} {right}" for left, right in learned.merges]
            files[merges.name] = ("\n".join(lines) + "\n").encode("utf-8")
        return files


def write_tokenizer_json(content: dict[str, Any], new_ids: dict[str, int], merges: Iterable[tuple[str, str]]) -> bytes:
    """Return a tokenizer.json with new pieces and their merges.

    The tokenizers library numbers added tokens after the model's vocabulary, whatever their ids in the file, unless the
    vocabulary contains them. They are therefore put into the vocabulary, where no merge leads to them.
    """
    model = content["model"]
    vocabulary = sorted((model["vocab"] | read_added_tokens(content) | new_ids).items(), key=lambda item: item[1])
    old_merges = model["merges"]
    as_text = bool(old_merges) and isinstance(old_merges[0], str)
    new_merges = [f"{left} {right}" if as_text else [left, right] for left, right in merges]
    extended = content | {"model": model | {"vocab": dict(vocabulary), "merges": [*old_merges, *new_merges]}}
    return orjson.dumps(extended) + b"\n"


def read_added_tokens(content: dict[str, Any]) -> dict[str, int]:
    """Return the added tokens of a tokenizer.json with their ids."""
    return {token["content"]: token["id"] for token in content.get("added_tokens") or ()}


def in_batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Yield lists of documents to encode in one call."""
    stream = iter(documents)
    while batch := list(islice(stream, _BATCH_DOCUMENTS)):
        yield batch


def count_characters(text: str) -> int:
    """Return the number of characters of a text in a byte-level vocabulary. A part of a character counts as one."""
    byte_of = _list_byte_characters()
    return len(bytes(byte_of[character] for character in text if character in byte_of).decode("utf-8", "replace"))


@cache
def _list_byte_characters() -> dict[str, int]:
    """Return the byte of each character of a byte-level vocabulary.

    Printable characters of Latin-1 stand for themselves, and the characters from 256 on for the other bytes in order.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}


def _list_types(content: dict[str, Any]) -> set[str]:
    """Return the types of the pre-tokenizers."""
    step = content.get("pre_tokenizer") or {}
    return {str(part.get("type")) for part in (step, *(step.get("pretokenizers") or ()))}
