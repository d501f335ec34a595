"""One document per row, padded; a longer document is split into whole rows and a padded one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ascend_cpt.data.packed.packing.layout import Packer, Rows, add_special_tokens, split_documents
from ascend_cpt.data.tokenizing.base import Encoded


class DocumentPacker(Packer):
    """Rows of one document, or of one piece of a document, in the order of the input."""

    def add(self, documents: Encoded) -> Iterator[Rows]:
        """Yield the rows of the documents."""
        stream, offsets = add_special_tokens(documents, self._layout)
        lengths = np.diff(offsets)
        self.num_tokens += stream.size
        self.num_cut_documents += int((lengths > self._row_tokens).sum())
        yield from self._fill_rows(stream, split_documents(lengths, self._row_tokens))

    def finish(self) -> Iterator[Rows]:
        """Yield nothing: every document has its rows."""
        yield from ()
