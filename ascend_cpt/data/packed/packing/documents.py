"""Packs one document per row, with padding. A longer document is split into whole rows and a padded one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ascend_cpt.data.packed.packing.layout import Packer, Rows, add_special_tokens, split_documents
from ascend_cpt.data.tokenizing.base import Encoded


class DocumentPacker(Packer):
    """Packs rows of one document or one piece of a document, in input order."""

    def add(self, documents: Encoded) -> Iterator[Rows]:
        """Yield the rows of the documents."""
        stream, offsets = add_special_tokens(documents, self._layout)
        lengths = np.diff(offsets)
        self.num_tokens += stream.size
        self.num_cut_documents += int((lengths > self._row_tokens).sum())
        yield from self._fill_rows(stream, split_documents(lengths, self._row_tokens))

    def finish(self) -> Iterator[Rows]:
        """Yield nothing, because every document's rows have already been yielded."""
        yield from ()
