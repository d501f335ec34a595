"""The fast engine. It is used only after it gave the same ids as the reference engine (see `choice.py`).

Known differences of gigatoken 0.10 are led around: documents that may meet one go to the reference engine.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import orjson

from ascend_cpt.data.tokenizing.base import Encoded, Engine, TokenizerFile, join_encoded
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, SENTENCE_PIECE
from ascend_cpt.data.tokenizing.reference_engines import make_reference_engine
from ascend_cpt.data.tokenizing.tiktoken_engine import find_family

# Characters younger than the reference's Unicode tables, whose class the two see differently: found by encoding every
# code point with both.
_YOUNG_CHARACTERS = re.compile("[\U000113c2\U0001611e\U00016d67\U00011de0-\U00011de9\U00016ff4-\U00016ff6]")


class UnsupportedTokenizerError(Exception):
    """gigatoken cannot read this tokenizer."""


class GigatokenEngine:
    """The gigatoken library on one thread."""

    def __init__(self, file: TokenizerFile, reference: Engine | None = None) -> None:
        """Load the tokenizer; raise UnsupportedTokenizerError when gigatoken cannot.

        `reference` is made when it is first needed, if it is not given.
        """
        import gigatoken

        self.name = "gigatoken"
        self._file = file
        self._reference = reference
        self._normalizes_nfc = False
        try:
            if file.info.type == HUGGING_FACE:
                plain = _make_plain_json(file)
                self._normalizes_nfc = '"NFC"' in plain
                self._tokenizer = gigatoken.Tokenizer.from_json(plain)
            elif file.info.type == SENTENCE_PIECE:
                self._tokenizer = gigatoken.Tokenizer.from_sentencepiece(file.path)
            else:
                family, _ = find_family(file.path)
                if family.gigatoken_scheme is None or file.parse_control:
                    raise UnsupportedTokenizerError(f"it does not read the ranks of {family.name}")
                self._normalizes_nfc = family.normalizes_nfc
                self._tokenizer = gigatoken.Tokenizer.from_tiktoken(file.path, family.gigatoken_scheme)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise UnsupportedTokenizerError(str(error)) from error
        # Its SentencePiece backend makes control tokens of their names in the text, whatever the added tokens are.
        is_sentence_piece = type(self._tokenizer.backend).__name__ == "SentencePieceTokenizer"
        self._traps = file.control_strings if is_sentence_piece and not file.parse_control else ()

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        detours = [k for k, text in enumerate(texts) if self._needs_reference(text)]
        if not detours:
            return self._encode(list(texts))
        if self._reference is None:
            self._reference = make_reference_engine(self._file)
        slow = self._reference.encode_batch([texts[k] for k in detours])
        detoured = set(detours)
        fast = self._encode(["" if k in detoured else text for k, text in enumerate(texts)])
        parts = np.split(fast.ids, fast.offsets[1:-1])
        for number, k in enumerate(detours):
            parts[k] = slow.ids[slow.offsets[number] : slow.offsets[number + 1]]
        return join_encoded(parts)

    def decode(self, ids: Sequence[int]) -> str:
        content: bytes = self._tokenizer.decode(np.asarray(ids, np.uint32))
        return content.decode("utf-8", "replace")

    def _encode(self, texts: list[str]) -> Encoded:
        layout = self._tokenizer.encode_batch(texts, parallel=False).layout
        ids = np.asarray(layout.content.data).view(np.int32)  # ids are far below 2^31
        return Encoded(ids, np.asarray(layout.offsets.data))

    def _needs_reference(self, text: str) -> bool:
        if any(trap in text for trap in self._traps):
            return True
        if text.isascii():
            return False
        if _YOUNG_CHARACTERS.search(text):
            return True
        return self._normalizes_nfc and not unicodedata.is_normalized("NFC", text)


def _make_plain_json(file: TokenizerFile) -> str:
    """The tokenizer.json without its control tokens, unless these are parsed.

    Added tokens that are not control tokens (runs of blanks, say) stay: they are part of how text is encoded.
    """
    content = orjson.loads(file.path.read_bytes())
    if not file.parse_control:
        content["added_tokens"] = [token for token in content.get("added_tokens") or () if not token.get("special")]
    return orjson.dumps(content | {"truncation": None, "padding": None, "post_processor": None}).decode()
