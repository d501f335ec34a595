"""Pack the concatenated token ids of documents into rows of equal length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.tokenizing.base import Encoded

Rows = npt.NDArray[np.int32]


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
    """Drop the last, incomplete row instead of padding it."""


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The remainder of a packed stream."""

    rows: Rows
    """One padded row, or none."""
    tail_tokens: int
    """Tokens in that row without padding."""
    dropped_tokens: int


class Packer:
    """Packs a stream of documents into rows that do not overlap; long documents span several rows."""

    def __init__(self, layout: RowLayout) -> None:
        self._layout = layout
        self._row_tokens = layout.seq_length + 1
        self._rest: Rows = np.empty(0, np.int32)
        self.num_tokens = 0
        """Tokens added, including EOD and BOS."""

    def add(self, documents: Encoded) -> Rows:
        """Add documents; return the rows completed by them, of shape [num_rows, seq_length + 1]."""
        stream = add_special_tokens(documents, self._layout).ids
        self.num_tokens += stream.size
        stream = np.concatenate((self._rest, stream))
        num_rows = stream.size // self._row_tokens
        self._rest = stream[num_rows * self._row_tokens :].copy()
        return stream[: num_rows * self._row_tokens].reshape(num_rows, self._row_tokens)

    def finish(self) -> Tail:
        """Return the remaining tokens as a padded row, or their number if they are dropped."""
        rest, self._rest = self._rest, np.empty(0, np.int32)
        if not rest.size or self._layout.drop_tail:
            return Tail(rows=np.empty((0, self._row_tokens), np.int32), tail_tokens=0, dropped_tokens=rest.size)
        row = np.full((1, self._row_tokens), self._layout.pad_id, np.int32)
        row[0, : rest.size] = rest
        return Tail(rows=row, tail_tokens=rest.size, dropped_tokens=0)


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
