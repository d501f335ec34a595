"""Types shared by all tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.tokenizing.info import TokenizerInfo


class Encoded(NamedTuple):
    """Token ids of several texts. Text k has the ids `ids[offsets[k]:offsets[k + 1]]`."""

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]


class Engine(Protocol):
    """Encodes texts to ids. BOS and EOD are not added, and control-token strings are encoded as text."""

    name: str

    def encode_batch(self, texts: Sequence[str]) -> Encoded: ...

    def needs_reference(self, text: str) -> bool:
        """Return whether a reference library encodes the text, which takes about 200 bytes per byte of text."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, kw_only=True)
class TokenizerFile:
    """A tokenizer on disk and its properties."""

    path: Path
    """File with the vocabulary."""
    info: TokenizerInfo
    control_strings: tuple[str, ...]
    """Strings of control tokens."""
    parse_control: bool = False
    """Whether control-token strings in documents are encoded as control tokens."""


def join_encoded(parts: Sequence[npt.ArrayLike]) -> Encoded:
    """Concatenate the ids of several texts."""
    arrays = [np.asarray(part, np.int32) for part in parts]
    offsets = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([array.size for array in arrays], out=offsets[1:])
    return Encoded(np.concatenate(arrays) if arrays else np.empty(0, np.int32), offsets)
