"""Training rows of an mmap dataset, cut from the concatenated documents when they are read.

Packing the documents into one MindRecord file would give the same rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.data.packed.megatron_indexed import DATA_SUFFIX, IndexedReader


def count_rows(manifest: Manifest, seq_length: int) -> int:
    """Return the number of rows with `seq_length` trained tokens in a dataset of either format."""
    if manifest.output_format != "mmap":
        return manifest.num_rows
    return -(-manifest.num_tokens // (seq_length + 1))


class MmapRows:
    """The rows of an mmap dataset, each with seq_length + 1 ids. The last row is padded.

    Raises:
        DataError: a file is missing, or the files do not match each other.
    """

    def __init__(self, manifest: Manifest, seq_length: int) -> None:
        assert len(manifest.shards) == 1, "an mmap dataset has one pair of files"
        prefix = str(manifest.folder / manifest.shards[0].file).removesuffix(DATA_SUFFIX)
        self._ids = IndexedReader(prefix).ids
        self._row_length, self._pad_id = seq_length + 1, manifest.tokenizer.pad_id

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return the rows at the given indices, int32 of shape (len(rows), seq_length + 1)."""
        found = np.full((len(rows), self._row_length), self._pad_id, dtype=np.int32)
        for place, row in enumerate(rows):
            ids = self._ids[row * self._row_length : (row + 1) * self._row_length]
            found[place, : len(ids)] = ids
        return found
