"""Concatenates documents and cuts the stream into rows. A document cut at the end of a row continues in the next."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ascend_cpt.data.packed.packing.layout import BLOCK_TOKENS, Packer, RowLayout, Rows, add_special_tokens
from ascend_cpt.data.tokenizing.base import Encoded


class ConcatPacker(Packer):
    """Packs rows without padding, except for the last one, which is padded or dropped."""

    def __init__(self, layout: RowLayout) -> None:
        super().__init__(layout)
        self._rest: Rows = np.empty(0, np.int32)

    def add(self, documents: Encoded) -> Iterator[Rows]:
        """Yield the rows completed by the documents."""
        stream, offsets = add_special_tokens(documents, self._layout)
        begins, lasts = self.num_tokens + offsets[:-1], self.num_tokens + offsets[1:] - 1
        self.num_cut_documents += int((begins // self._row_tokens < lasts // self._row_tokens).sum())
        self.num_tokens += stream.size
        stream = np.concatenate((self._rest, stream))
        num_rows = stream.size // self._row_tokens
        self._rest = stream[num_rows * self._row_tokens :].copy()
        rows = stream[: num_rows * self._row_tokens].reshape(num_rows, self._row_tokens)
        step = max(1, BLOCK_TOKENS // self._row_tokens)
        for begin in range(0, num_rows, step):
            yield rows[begin : begin + step]

    def finish(self) -> Iterator[Rows]:
        """Yield the remaining tokens as a padded row, or only count them with `drop_tail`."""
        rest, self._rest = self._rest, np.empty(0, np.int32)
        if self._layout.drop_tail:
            self.dropped_tokens = rest.size
        elif rest.size:
            self.tail_tokens = rest.size
            yield from self._fill_rows(rest, np.array([rest.size]))
