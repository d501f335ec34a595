"""The engines that decide what is right: tokenizers for Hugging Face folders, sentencepiece for its models."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ascend_cpt.data.tokenizing.base import Encoded, Engine, TokenizerFile, join_encoded
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, SENTENCE_PIECE
from ascend_cpt.data.tokenizing.tiktoken_engine import TiktokenEngine
from ascend_cpt.errors import DataError


def make_reference_engine(file: TokenizerFile) -> Engine:
    """Make the reference engine of a tokenizer."""
    if file.info.type == HUGGING_FACE:
        return HuggingFaceEngine(file)
    if file.info.type == SENTENCE_PIECE:
        return SentencePieceEngine(file)
    return TiktokenEngine(file)


def make_plain_json(file: TokenizerFile) -> str:
    """The tokenizer.json without truncation and padding and, unless control tokens are parsed, without these.

    Added tokens that are not control tokens (runs of blanks, say) stay: they are part of how text is encoded.
    """
    content = json.loads(file.path.read_text(encoding="utf-8"))
    content |= {"truncation": None, "padding": None, "post_processor": None}
    if not file.parse_control:
        content["added_tokens"] = [token for token in content.get("added_tokens") or () if not token.get("special")]
    return json.dumps(content)


class HuggingFaceEngine:
    """The tokenizers library."""

    def __init__(self, file: TokenizerFile) -> None:
        from tokenizers import Tokenizer

        self.name = "tokenizers"
        try:
            self._tokenizer = Tokenizer.from_str(make_plain_json(file))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{file.path}: the tokenizers library cannot load it: {error}") from error
        self._special_texts = _find_special_texts(file)

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return join_encoded([encoding.ids for encoding in encodings])

    def decode(self, ids: Sequence[int]) -> str:
        parts: list[str] = []
        plain: list[int] = []
        for k in ids:
            if k in self._special_texts:
                parts += [self._tokenizer.decode(plain, skip_special_tokens=False), self._special_texts[k]]
                plain = []
            else:
                plain.append(k)
        return "".join((*parts, self._tokenizer.decode(plain, skip_special_tokens=False)))


class SentencePieceEngine:
    """The sentencepiece library."""

    def __init__(self, file: TokenizerFile) -> None:
        import sentencepiece

        self.name = "sentencepiece"
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(file.path))

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        return join_encoded([self._model.encode(text) for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._model.decode(list(ids)))


def _find_special_texts(file: TokenizerFile) -> dict[int, str]:
    content = json.loads(file.path.read_text(encoding="utf-8"))
    return {token["id"]: token["content"] for token in content.get("added_tokens") or () if token.get("special")}
