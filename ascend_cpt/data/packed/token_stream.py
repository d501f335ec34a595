"""Random access to the tokens of a packed dataset in either format, without MindSpore.

Rows do not overlap, so concatenating a dataset's rows in order, minus the trailing padding, gives its tokens.
"""

from __future__ import annotations

import functools
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.data.packed.megatron_indexed import DATA_SUFFIX, IndexedReader
from ascend_cpt.data.packed.mindrecord_writer import COLUMN, HEAD_BYTES, INDEX_SUFFIX, check_sizes, unpack_row
from ascend_cpt.data.packed.packing import CONCAT, strip_padding
from ascend_cpt.errors import DataError

Tokens = npt.NDArray[np.int32]
_SIZE_BYTES = 8
_MAX_HEADER_BYTES = 1 << 30
_PLACES = "SELECT PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES"


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """The layout of a MindRecord file, read from its header."""

    header_bytes: int
    page_bytes: int
    names: tuple[str, ...]
    """Names of the files of its set, of which it is one."""
    arrays: Mapping[str, str]
    """Array columns and their types (`int32`, `int64`, `float32`, `bytes`), in the order in which a row has them."""

    def split_row(self, entry: bytes) -> dict[str, bytes]:
        """Return a row's array columns. Integer columns are entries as written by `pack_rows`.

        Raises:
            ValueError: the sizes within the entry are not possible.
        """
        if len(self.arrays) == 1:
            return dict.fromkeys(self.arrays, entry)
        found, begin = {}, _SIZE_BYTES
        for name in self.arrays:
            size = int.from_bytes(entry[begin : begin + _SIZE_BYTES], "big")
            end = begin + _SIZE_BYTES + size
            if end > len(entry):
                raise ValueError("a row is damaged")
            found[name] = size.to_bytes(_SIZE_BYTES, "little") + entry[begin + _SIZE_BYTES : end]
            begin = end
        if begin != len(entry) or int.from_bytes(entry[:_SIZE_BYTES], "little") != len(entry) - _SIZE_BYTES:
            raise ValueError("a row is damaged")
        return found


class TokenStream:
    """The tokens of a dataset.

    If rows may be padded (`packing` other than `concat`), no index gives each row's position in the stream. Reading
    then begins at the row that would contain `start` if all rows had equally many tokens, and wraps around at the end.

    Raises:
        DataError: the files of an mmap dataset do not match each other.
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
        """Number of tokens, not counting padding."""
        return int(self._starts[-1])

    def read(self, start: int, count: int) -> Tokens:
        """Return tokens starting at `start`, int32 of shape (count,).

        Raises:
            DataError: a file cannot be read.
        """
        assert start >= 0 and start + count <= self.num_tokens
        if self._ids is not None:
            return self._ids[start : start + count].astype(np.int32)
        if self._manifest.packing != CONCAT:
            return self._read_padded(start, count)
        parts = [np.empty(0, np.int32)]
        while count:
            shard = int(np.searchsorted(self._starts, start, "right")) - 1
            taken = min(count, int(self._starts[shard + 1]) - start)
            parts.append(self._read_shard(shard, start - int(self._starts[shard]), taken))
            start, count = start + taken, count - taken
        return np.concatenate(parts)

    def _read_padded(self, start: int, count: int) -> Tokens:
        shards = [shard for shard in self._manifest.shards if shard.num_rows]
        first_rows = np.cumsum([0, *(shard.num_rows for shard in shards)])
        num_rows = int(first_rows[-1])
        row = start * num_rows // max(1, self.num_tokens)
        parts, num_read = [np.empty(0, np.int32)], 0
        while num_read < count:
            number = int(np.searchsorted(first_rows, row, "right")) - 1
            first = row - int(first_rows[number])
            # The fewest rows that can hold these tokens. If padding requires more, the next iteration reads them.
            wanted = -(-(count - num_read) // self._row_length)
            last = min(first + wanted, shards[number].num_rows) - 1
            rows = read_rows(self._manifest.folder / shards[number].file, first, last)
            parts.append(strip_padding(rows, self._manifest.tokenizer.pad_id))
            num_read += parts[-1].size
            row = (row + last - first + 1) % num_rows
        return np.concatenate(parts)[:count]

    @property
    def _row_length(self) -> int:
        return self._manifest.row_tokens

    def _read_shard(self, number: int, start: int, count: int) -> Tokens:
        row_length = self._row_length
        first, last = start // row_length, (start + count - 1) // row_length
        rows = read_rows(self._manifest.folder / self._manifest.shards[number].file, first, last)
        return rows.reshape(-1)[start - first * row_length :][:count]


def read_rows(path: Path, first: int, last: int) -> Tokens:
    """Return rows `first` to `last` (inclusive) of a MindRecord file, of shape [num_rows, row_length].

    Raises:
        DataError: the file cannot be read or has fewer rows.
    """
    return np.stack([row[COLUMN] for row in iter_columns(path, [COLUMN], range(first, last + 1))])


def iter_columns(path: Path, names: Iterable[str], rows: Iterable[int] | None = None) -> Iterator[dict[str, Tokens]]:
    """Yield the named integer columns for the given rows of a MindRecord file (None for all rows).

    Raises:
        DataError: the file cannot be read, has fewer rows, or has numbers of more than 32 bits.
    """
    with _reporting_damage(path), path.open("rb") as file:
        layout = read_layout(path)
        for offset, size in _find_entries(path, rows):
            entries = layout.split_row(os.pread(file.fileno(), size, offset))
            yield {name: unpack_row(entries[name]) for name in names}


def count_entries(path: Path) -> int:
    """Return the number of rows in a MindRecord file. Raise DataError if its index cannot be read."""
    with _reporting_damage(path):
        return len(_find_entries(path, None))


def read_layout(path: Path) -> FileLayout:
    """Return the layout of a MindRecord file.

    Raises:
        DataError: the header cannot be read.
    """
    with _reporting_damage(path):
        status = path.stat()
        return _read_layout(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _read_layout(path: Path, size_bytes: int, _mtime_ns: int) -> FileLayout:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_SIZE_BYTES), "little")
        if not 0 < length <= min(size_bytes, _MAX_HEADER_BYTES):
            raise ValueError("not a MindRecord file")
        try:
            header = json.loads(file.read(length))
            schema = header["schema"][0]
            layout = FileLayout(
                header_bytes=header["header_size"],
                page_bytes=header["page_size"],
                names=tuple(header["shard_addresses"]),
                arrays={name: schema["schema"][name]["type"] for name in schema["blob_fields"]},
            )
        except (RecursionError, LookupError, TypeError) as error:
            raise ValueError("its header is damaged") from error
    sizes = (layout.header_bytes, layout.page_bytes)
    if not layout.arrays or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError("its header is damaged")
    return layout


def check_rows(path: Path, rows: Iterable[int] | None = None, row_length: int | None = None) -> None:
    """Check the sizes in row entries, because MindSpore computes addresses from them unchecked.

    A damaged size would make MindSpore crash with a segmentation fault. The ids themselves are not checked.

    Args:
        path: A MindRecord file.
        rows: Indices of the rows to check, or None for all.
        row_length: The number of ids that a row must have, if known.

    Raises:
        DataError: a row is damaged, the file cannot be read, or it has fewer rows.
    """
    with _reporting_damage(path), path.open("rb") as file:
        layout = read_layout(path)
        for offset, size in _find_entries(path, rows):
            if len(layout.arrays) == 1:
                head = os.pread(file.fileno(), min(size, HEAD_BYTES + size // 4 + 1), offset)
            else:
                head = layout.split_row(os.pread(file.fileno(), size, offset))[COLUMN]
                size = len(head)
            check_sizes(head, size, row_length)


def _find_entries(path: Path, rows: Iterable[int] | None) -> list[tuple[int, int]]:
    """Return the (offset, size) in bytes of the given rows' entries (None for all), as stored in the index."""
    index = f"{path.absolute().as_uri()}{INDEX_SUFFIX}?mode=ro"
    with closing(sqlite3.connect(index, uri=True)) as connection:
        if rows is None:
            places = connection.execute(f"{_PLACES} ORDER BY ROW_ID").fetchall()
        else:
            wanted = list(rows)
            if not wanted:
                return []
            if wanted == list(range(wanted[0], wanted[-1] + 1)):
                query, arguments = f"{_PLACES} WHERE ROW_ID BETWEEN ? AND ? ORDER BY ROW_ID", (wanted[0], wanted[-1])
                places = connection.execute(query, arguments).fetchall()
            else:
                found = (connection.execute(f"{_PLACES} WHERE ROW_ID = ?", (row,)).fetchone() for row in wanted)
                places = [place for place in found if place is not None]
            if len(places) != len(wanted):
                raise DataError(
                    f"{path}: has {len(places)} of the rows {wanted[0]} to {wanted[-1]}; copy it again with its index"
                )
    layout, file_bytes = read_layout(path), path.stat().st_size
    entries = []
    for page, begin, end in places:
        offset = layout.header_bytes + layout.page_bytes * page + begin
        if not (begin >= 0 and page >= 0 and begin < end and offset + end - begin <= file_bytes):
            raise ValueError("a row is outside the file")
        entries.append((offset, end - begin))
    return entries


@contextmanager
def _reporting_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, LookupError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({error}); copy it again with its index") from error
