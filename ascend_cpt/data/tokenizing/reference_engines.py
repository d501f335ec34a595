"""Reference engines: tokenizers for Hugging Face folders, sentencepiece for its models, tiktoken for rank files."""

from __future__ import annotations

from collections.abc import Sequence

from ascend_cpt.data.tokenizing.base import Encoded, Engine, TokenizerFile, join_encoded
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, SENTENCE_PIECE
from ascend_cpt.data.tokenizing.tiktoken_engine import TiktokenEngine
from ascend_cpt.errors import DataError


def make_reference_engine(file: TokenizerFile) -> Engine:
    """Create the reference engine for a tokenizer."""
    if file.info.type == HUGGING_FACE:
        return HuggingFaceEngine(file)
    if file.info.type == SENTENCE_PIECE:
        return SentencePieceEngine(file)
    return TiktokenEngine(file)


def adds_bos(file: TokenizerFile) -> bool:
    """Return whether the tokenizer itself begins a text with its beginning-of-document token.

    A Hugging Face tokenizer has a rule for this. Llama's own files do not, but Llama's code always adds the token.
    """
    if file.info.bos_id is None or file.info.type != HUGGING_FACE:
        return file.info.bos_id is not None
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(file.path)).encode("a", add_special_tokens=True).ids
    return bool(ids) and ids[0] == file.info.bos_id


class HuggingFaceEngine:
    """The tokenizers library."""

    def __init__(self, file: TokenizerFile) -> None:
        from tokenizers import Tokenizer

        self.name = "tokenizers"
        try:
            self._tokenizer = Tokenizer.from_file(str(file.path))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{file.path}: the tokenizers library cannot load it: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Encode control-token strings as text. Removing the tokens would change the ids of added tokens after them.
        self._tokenizer.encode_special_tokens = not file.parse_control

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return join_encoded([encoding.ids for encoding in encodings])

    def needs_reference(self, text: str) -> bool:
        return True

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


class SentencePieceEngine:
    """The sentencepiece library."""

    def __init__(self, file: TokenizerFile) -> None:
        import sentencepiece

        self.name = "sentencepiece"
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(file.path))

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        return join_encoded([self._model.encode(text) for text in texts])

    def needs_reference(self, text: str) -> bool:
        return True

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._model.decode(list(ids)))
