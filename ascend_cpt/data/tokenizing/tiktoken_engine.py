"""Tokenizers with rank files, which lack a split pattern and control tokens. Both depend on the model family."""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.data.tokenizing.base import Encoded, TokenizerFile, join_encoded
from ascend_cpt.errors import DataError

_QWEN_NUMBERS = r"\p{N}"
_LLAMA3_NUMBERS = r"\p{N}{1,3}"
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family's split pattern and control tokens."""

    name: str
    pattern: str
    normalizes_nfc: bool
    first_specials: tuple[str, ...]
    """Control tokens, numbered after the ranks."""
    reserved: str
    """Template for the names of the remaining control tokens."""
    num_specials: int
    eod_token: str
    pad_token: str
    bos_token: str | None = None
    gigatoken_scheme: str | None = None
    """Name of the pattern in gigatoken, None if it does not support the ranks."""

    def special_tokens(self, num_ranks: int) -> dict[str, int]:
        """Return control token → id."""
        reserved = (self.reserved % k for k in range(self.num_specials - len(self.first_specials)))
        return {token: num_ranks + k for k, token in enumerate((*self.first_specials, *reserved))}


# Llama 3.1 renamed some of Llama 3's reserved tokens; the ids are the same.
LLAMA3 = Family(
    name="llama3",
    pattern=_PATTERN % _LLAMA3_NUMBERS,
    normalizes_nfc=False,
    first_specials=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|step_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    ),
    reserved="<|reserved_special_token_%d_more|>",
    num_specials=256,
    eod_token="<|end_of_text|>",
    pad_token="<|finetune_right_pad_id|>",
    bos_token="<|begin_of_text|>",
)
QWEN = Family(
    name="qwen",
    pattern=_PATTERN % _QWEN_NUMBERS,
    normalizes_nfc=True,
    first_specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    reserved="<|extra_%d|>",
    num_specials=208,
    eod_token="<|endoftext|>",
    pad_token="<|extra_0|>",
    gigatoken_scheme="qwen2",
)
FAMILIES = {128_000: LLAMA3, 151_643: QWEN}
"""Number of ranks → family."""


def find_family(path: Path) -> tuple[Family, int]:
    """Return a rank file's family, which the number of ranks determines, and the number of ranks.

    Raises:
        DataError: the file is not a rank file, or its family is unknown.
    """
    num_ranks = len(_read_ranks(path))
    if num_ranks not in FAMILIES:
        known = ", ".join(f"{family.name} ({number})" for number, family in FAMILIES.items())
        raise DataError(
            f"{path}: no known tokenizer has {num_ranks} ranks: {known}; use the Hugging Face folder instead"
        )
    return FAMILIES[num_ranks], num_ranks


class TiktokenEngine:
    """The tiktoken library with a model family's pattern."""

    def __init__(self, file: TokenizerFile) -> None:
        import tiktoken

        ranks = _read_ranks(file.path)
        family = FAMILIES[len(ranks)]
        self.name = "tiktoken"
        self._normalizes_nfc = family.normalizes_nfc
        self._parse_control = file.parse_control
        self._encoding = tiktoken.Encoding(
            name=family.name,
            pat_str=family.pattern,
            mergeable_ranks=ranks,
            special_tokens=family.special_tokens(len(ranks)),
        )

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        options: dict[str, Any] = {"allowed_special": "all"} if self._parse_control else {"disallowed_special": ()}
        if self._normalizes_nfc:
            texts = [unicodedata.normalize("NFC", text) for text in texts]
        return join_encoded([self._encoding.encode(text, **options) for text in texts])

    def needs_reference(self, text: str) -> bool:
        return True

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._encoding.decode(list(ids)))


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            token, _, rank = line.partition(b" ")
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a tiktoken rank file; for a Llama 2 tokenizer.model, use --tokenizer-type SentencePiece"
        ) from error
    return ranks
