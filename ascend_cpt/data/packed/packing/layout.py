"""Code shared by all packers: the row layout, special tokens, and padded rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.tokenizing.base import Encoded

Rows = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]

BLOCK_TOKENS = 1 << 20
"""Rows are made in blocks of about this size, because writing takes several times their memory."""


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """Row length and special tokens."""

    seq_length: int
    """Trained tokens per row; a row has one more token, because labels are shifted by one."""
    pad_id: int
    eod_id: int | None
    """Appended to each document if not None."""
    bos_id: int | None = None
    """Prepended to each document if not None."""
    drop_tail: bool = False
    """Drop the last, incomplete row instead of padding it; for concatenated documents only."""

    @property
    def row_tokens(self) -> int:
        """Tokens of a row."""
        return self.seq_length + 1


class Packer(ABC):
    """Packs a stream of documents into non-overlapping rows of seq_length + 1 tokens."""

    def __init__(self, layout: RowLayout) -> None:
        self._layout = layout
        self._row_tokens = layout.row_tokens
        self.num_tokens = 0
        """Tokens added, including EOD and BOS."""
        self.num_cut_documents = 0
        """Documents with tokens in more than one row."""
        self.padding_tokens = 0
        """Padding in the rows returned so far."""
        self.tail_tokens = 0
        """Tokens without padding in the last row, if it is the only one that may be padded and is; set by `finish`."""
        self.dropped_tokens = 0
        """Tokens of the last, incomplete row, if it is dropped; set by `finish`."""

    @abstractmethod
    def add(self, documents: Encoded) -> Iterator[Rows]:
        """Add documents and yield blocks of completed rows, of shape [num_rows, seq_length + 1]."""

    @abstractmethod
    def finish(self) -> Iterator[Rows]:
        """Yield the remaining rows."""

    def _fill_rows(self, ids: Rows, lengths: Numbers) -> Iterator[Rows]:
        """Yield padded rows in blocks. Row k has the next `lengths[k]` of `ids`."""
        step = max(1, BLOCK_TOKENS // self._row_tokens)
        begin = 0
        for first in range(0, len(lengths), step):
            block = lengths[first : first + step]
            end = begin + int(block.sum())
            rows = np.full((len(block), self._row_tokens), self._layout.pad_id, np.int32)
            rows[np.arange(self._row_tokens) < block[:, None]] = ids[begin:end]
            self.padding_tokens += rows.size - (end - begin)
            begin = end
            yield rows


def add_special_tokens(documents: Encoded, layout: RowLayout) -> Encoded:
    """Return the documents with BOS and EOD added."""
    extra = (layout.bos_id is not None) + (layout.eod_id is not None)
    if not extra:
        return documents
    num_documents = documents.offsets.size - 1
    ids = np.empty(documents.ids.size + num_documents * extra, np.int32)
    is_text = np.ones(ids.size, bool)
    offsets = documents.offsets + np.arange(num_documents + 1) * extra
    for positions, token in ((offsets[:-1], layout.bos_id), (offsets[1:] - 1, layout.eod_id)):
        if token is not None:
            ids[positions] = token
            is_text[positions] = False
    ids[is_text] = documents.ids
    return Encoded(ids, offsets)


def split_documents(lengths: Numbers, row_tokens: int) -> Numbers:
    """Return the lengths of document pieces. Only documents longer than a row are split.

    All pieces of a document except the last are whole rows. Empty documents have no pieces.
    """
    num_pieces = -(-lengths // row_tokens)
    pieces = np.full(int(num_pieces.sum()), row_tokens, np.int64)
    has_pieces = num_pieces > 0
    pieces[np.cumsum(num_pieces)[has_pieces] - 1] = lengths[has_pieces] - (num_pieces[has_pieces] - 1) * row_tokens
    return pieces


def strip_padding(rows: Rows, pad_id: int) -> Rows:
    """Concatenate the ids of rows of shape (num_rows, row_length), without the padding at the ends."""
    is_real = rows[:, ::-1] != pad_id
    lengths = np.where(is_real.any(1), rows.shape[1] - is_real.argmax(1), 0)
    ids: Rows = rows[np.arange(rows.shape[1]) < lengths[:, None]]
    return ids
