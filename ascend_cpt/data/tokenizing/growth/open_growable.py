"""Finds the tokenizer of a folder that can be extended."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ascend_cpt.data.tokenizing.growth.byte_level import TOKENIZER_JSON, ByteLevelTokenizer
from ascend_cpt.data.tokenizing.growth.learn_merges import Learned, LearnSettings
from ascend_cpt.data.tokenizing.growth.sentence_piece import TOKENIZER_MODEL, SentencePieceTokenizer
from ascend_cpt.errors import DataError

# The first line of a rank file begins with the base64 of a byte.
_TIKTOKEN_START = b"IQ== 0"
_TIKTOKEN_NAMES = (TOKENIZER_MODEL, "qwen.tiktoken")


class GrowableTokenizer(Protocol):
    """A tokenizer that can learn new pieces."""

    kind: str
    first_id: int
    """Id of the first new piece."""

    def learn(self, documents: Iterable[str], settings: LearnSettings) -> Learned: ...

    def extend(self, learned: Learned) -> dict[str, bytes]:
        """Return the files of the new tokenizer that differ from the old ones, as name → content."""
        ...


def open_growable(folder: Path) -> GrowableTokenizer:
    """Return the tokenizer in a Hugging Face folder.

    Raises:
        DataError: there is none, or none of a kind that can be extended.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder with a tokenizer, or a whole Hugging Face model")
    rank_files = find_rank_files(folder)
    if (folder / TOKENIZER_MODEL).is_file() and TOKENIZER_MODEL not in rank_files:
        return SentencePieceTokenizer(folder)
    if (folder / TOKENIZER_JSON).is_file():
        return ByteLevelTokenizer(folder)
    if rank_files:
        raise DataError(
            f"{folder / rank_files[0]}: a tiktoken rank file cannot be extended; use the model's Hugging Face folder, "
            f"which has a {TOKENIZER_JSON}"
        )
    raise DataError(f"{folder}: contains neither {TOKENIZER_JSON} nor {TOKENIZER_MODEL}")


def find_rank_files(folder: Path) -> list[str]:
    """Return the names of tiktoken rank files, which the extended tokenizer does not have."""
    names = [name for name in _TIKTOKEN_NAMES if (folder / name).is_file()]
    return [name for name in names if (folder / name).open("rb").read(len(_TIKTOKEN_START)) == _TIKTOKEN_START]
