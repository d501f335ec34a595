"""The fast engine, gigatoken. It is checked against the reference engine before use (see `engine_choice.py`).

The reference engine encodes documents that may be affected by known differences in gigatoken 0.10.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from ascend_cpt.data.tokenizing.base import Encoded, Engine, TokenizerFile, join_encoded
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, SENTENCE_PIECE, TIKTOKEN
from ascend_cpt.data.tokenizing.reference_engines import make_reference_engine
from ascend_cpt.data.tokenizing.tiktoken_engine import find_family

# Characters that are newer than the reference engine's Unicode tables and are encoded differently. They were found by
# encoding with both engines every code point, alone and with a dozen combining marks before and after it, every pair
# of combining marks, every canonical decomposition and every pair in blocks with newer compositions. A slow test
# repeats this search.
_NEW_CHARACTERS = (
    "\U00011380-\U000113ff\U00011de0-\U00011de9\U00016100-\U0001613f\U00016d40-\U00016d7f\U00016ff4-\U00016ff6"
)
_NEW_MARKS = (
    "\u07fd\u0897-\u089f\u08ca-\u08d3\u09fe\u0c3c\u0d3b-\u0d3c\u0eba\u1715\u1abf-\u1add\u1ae0-\u1aeb\u1df6-\u1dfa\ua82c"
    "\U000105d2\U000105da\U00010d24-\U00010d27\U00010d69-\U00010d6d\U00010eab-\U00010eac\U00010efa-\U00010eff"
    "\U00010f46-\U00010f50\U00010f82-\U00010f85\U00011070\U0001133b\U0001145e\U00011839-\U0001183a\U00011930"
    "\U0001193d-\U0001193e\U00011943\U000119e0\U00011a34\U00011a47\U00011a99\U00011d42\U00011d44-\U00011d45\U00011d97"
    "\U00011f41-\U00011f42\U00016ff0-\U00016ff1\U0001e08f\U0001e130-\U0001e136\U0001e2ae\U0001e2ec-\U0001e2ef"
    "\U0001e4ec-\U0001e4ef\U0001e5ee-\U0001e5ef\U0001e6e3\U0001e6e6\U0001e6ee-\U0001e6ef\U0001e6f5"
)
"""Combining marks that differ only in NFC text, by canonical order or composition."""
_NEW_END = 0x20000
_NEW_LEAD_BYTES = np.zeros(256, bool)
"""First UTF-8 bytes of these characters, for a fast check that excludes most texts."""
_NEW_LEAD_BYTES[[0xDF, 0xE0, 0xE1, 0xEA, 0xF0]] = True

_MAX_GROWTH_BYTES = 96 << 20
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class UnsupportedTokenizerError(Exception):
    """gigatoken cannot read this tokenizer."""


class GigatokenEngine:
    """The gigatoken library on one thread.

    Its word cache is unbounded, so the tokenizer is recreated when the process's memory has grown by 96 MiB.
    """

    def __init__(self, file: TokenizerFile) -> None:
        """Load the tokenizer. Raise UnsupportedTokenizerError if gigatoken does not support it."""
        self.name = "gigatoken"
        self.reference: Engine | None = None
        """Engine for texts that gigatoken may encode differently; created on first use."""
        self._file = file
        self._normalizes_nfc = file.info.type == TIKTOKEN and find_family(file.path)[0].normalizes_nfc
        """Whether text must be normalized to NFC before gigatoken encodes it."""
        self._tokenizer, normalizes_nfc = _load(file)
        self._is_new_character = _tabulate(_NEW_CHARACTERS + _NEW_MARKS if normalizes_nfc else _NEW_CHARACTERS)
        # gigatoken's SentencePiece backend always encodes control-token strings as control tokens.
        is_sentence_piece = type(self._tokenizer.backend).__name__ == "SentencePieceTokenizer"
        self._control_strings = file.control_strings if is_sentence_piece and not file.parse_control else ()
        self._encode([""])  # the first call allocates more memory
        self._first_bytes = _measure_memory()

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        if _measure_memory() - self._first_bytes > _MAX_GROWTH_BYTES:
            del self._tokenizer  # free memory before loading again
            self._tokenizer, _ = _load(self._file)
            self._first_bytes = _measure_memory()
        rerouted = [k for k, text in enumerate(texts) if self.needs_reference(text)]
        if not rerouted:
            return self._encode(list(texts))
        if self.reference is None:
            self.reference = make_reference_engine(self._file)
        slow = self.reference.encode_batch([texts[k] for k in rerouted])
        rerouted_set = set(rerouted)
        fast = self._encode(["" if k in rerouted_set else text for k, text in enumerate(texts)])
        parts = np.split(fast.ids, fast.offsets[1:-1])
        for number, k in enumerate(rerouted):
            parts[k] = slow.ids[slow.offsets[number] : slow.offsets[number + 1]]
        return join_encoded(parts)

    def needs_reference(self, text: str) -> bool:
        if any(string in text for string in self._control_strings):
            return True
        if text.isascii() or not _NEW_LEAD_BYTES[np.frombuffer(text.encode(), np.uint8)].any():
            return False
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        return bool(self._is_new_character[codes[codes < len(self._is_new_character)]].any())

    def decode(self, ids: Sequence[int]) -> str:
        content: bytes = self._tokenizer.decode(np.asarray(ids, np.uint32))
        return content.decode("utf-8", "replace")

    def _encode(self, texts: list[str]) -> Encoded:
        if self._normalizes_nfc:
            texts = [unicodedata.normalize("NFC", text) for text in texts]
        layout = self._tokenizer.encode_batch(texts, parallel=False).layout
        ids = np.asarray(layout.content.data).view(np.int32)  # ids are far below 2^31
        return Encoded(ids, np.asarray(layout.offsets.data))


def _tabulate(characters: str) -> npt.NDArray[np.bool_]:
    """Return a table by code point of the characters in a regular-expression character class."""
    table = np.zeros(_NEW_END, bool)
    table[[ord(character) for character in re.findall(f"[{characters}]", "".join(map(chr, range(_NEW_END))))]] = True
    return table


def _load(file: TokenizerFile) -> tuple[Any, bool]:
    """Return the gigatoken tokenizer and whether it normalizes text to NFC."""
    import gigatoken

    try:
        if file.info.type == HUGGING_FACE:
            plain = _make_plain_json(file)
            return gigatoken.Tokenizer.from_json(plain), b'"NFC"' in plain
        if file.info.type == SENTENCE_PIECE:
            return gigatoken.Tokenizer.from_sentencepiece(file.path), False
        family, _ = find_family(file.path)
        if family.gigatoken_scheme is None or file.parse_control:
            raise UnsupportedTokenizerError(f"{family.name} rank files are not supported")
        return gigatoken.Tokenizer.from_tiktoken(file.path, family.gigatoken_scheme), False
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedTokenizerError(str(error)) from error


def _measure_memory() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES


def _make_plain_json(file: TokenizerFile) -> bytes:
    """Return the tokenizer.json, without control tokens unless they are parsed.

    Added tokens that are not control tokens (such as runs of spaces) are kept, because they affect how text is encoded.
    """
    content = orjson.loads(file.path.read_bytes())
    if not file.parse_control:
        content["added_tokens"] = [token for token in content.get("added_tokens") or () if not token.get("special")]
    return orjson.dumps(content | {"truncation": None, "padding": None, "post_processor": None})
