"""Random access to the tokens of a packed dataset, in either format, without MindSpore.

Rows do not overlap, so the tokens of a dataset are those of its rows in order, without the padding at the end of files.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.data.packed.megatron_indexed import DATA_SUFFIX, IndexedReader
from ascend_cpt.data.packed.mindrecord_writer import HEADER_BYTES, INDEX_SUFFIX, PAGE_BYTES, unpack_row
from ascend_cpt.errors import DataError

Tokens = npt.NDArray[np.int32]
_QUERY = (
    "SELECT PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES "
    "WHERE ROW_ID BETWEEN ? AND ? ORDER BY ROW_ID"
)


class TokenStream:
    """The tokens of a dataset.

    Raises:
        DataError: an mmap dataset whose files do not match.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        if manifest.output_format == "mmap":
            assert len(manifest.shards) == 1, "an mmap dataset has one pair of files"
            prefix = str(manifest.folder / manifest.shards[0].file).removesuffix(DATA_SUFFIX)
            self._ids: npt.NDArray[np.generic] | None = IndexedReader(prefix).ids
            self._starts = np.array([0, len(self._ids)])
        else:
            self._ids = None
            self._starts = np.cumsum([0, *(shard.num_tokens for shard in manifest.shards)])

    @property
    def num_tokens(self) -> int:
        """Number of tokens, without padding."""
        return int(self._starts[-1])

    def read(self, start: int, count: int) -> Tokens:
        """Return the tokens from `start` on, int32 of shape (count,).

        Raises:
            DataError: a file cannot be read.
        """
        assert start >= 0 and start + count <= self.num_tokens
        if self._ids is not None:
            return self._ids[start : start + count].astype(np.int32)
        parts = [np.empty(0, np.int32)]
        while count:
            shard = int(np.searchsorted(self._starts, start, "right")) - 1
            taken = min(count, int(self._starts[shard + 1]) - start)
            parts.append(self._read_shard(shard, start - int(self._starts[shard]), taken))
            start, count = start + taken, count - taken
        return np.concatenate(parts)

    def _read_shard(self, number: int, start: int, count: int) -> Tokens:
        assert self._manifest.seq_length is not None
        row_length = self._manifest.seq_length + 1
        first, last = start // row_length, (start + count - 1) // row_length
        rows = read_rows(self._manifest.folder / self._manifest.shards[number].file, first, last)
        return rows.reshape(-1)[start - first * row_length :][:count]


def read_rows(path: Path, first: int, last: int) -> Tokens:
    """Return the rows `first` to `last` (inclusive) of a MindRecord file of this package, [num_rows, row_length].

    Raises:
        DataError: the file cannot be read, or has fewer rows.
    """
    try:
        index = f"file:{path}{INDEX_SUFFIX}?mode=ro"
        with closing(sqlite3.connect(index, uri=True)) as connection:
            places = connection.execute(_QUERY, (first, last)).fetchall()
        if len(places) != last - first + 1:
            raise DataError(f"{path}: has {len(places)} of the rows {first} to {last}; copy it again with its index")
        rows = []
        with path.open("rb") as file:
            for page, begin, end in places:
                file.seek(HEADER_BYTES + PAGE_BYTES * page + begin)
                rows.append(unpack_row(file.read(end - begin)))
        return np.stack(rows)
    except (OSError, sqlite3.Error, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy it again with its index") from error
