"""Random access to the tokens of a packed dataset, in either format, without MindSpore.

Rows do not overlap, so the tokens of a dataset are those of its rows in order, without the padding at the end of rows.
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
    """The layout of a MindRecord file, from its header."""

    header_bytes: int
    page_bytes: int
    names: tuple[str, ...]
    """Names of the files of its set, of which it is one."""
    arrays: Mapping[str, str]
    """Array columns and their types (`int32`, `int64`, `float32`, `bytes`), in the order in which a row has them."""

    def split_row(self, entry: bytes) -> dict[str, bytes]:
        """Return the array columns of a row, each as an entry of `pack_rows` if it has whole numbers.

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

    If rows may be padded (`packing` other than `concat`), no index has the position of each row: reading then begins at
    the row in which `start` would be if all rows had equally many tokens, and continues at the first row after the end.

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
            # The fewest rows that can hold these tokens: padded rows need more, which are read in the next turn.
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
    """Return the rows `first` to `last` (inclusive) of a MindRecord file, [num_rows, row_length].

    Raises:
        DataError: the file cannot be read, or has fewer rows.
    """
    return np.stack([row[COLUMN] for row in iter_columns(path, [COLUMN], range(first, last + 1))])


def iter_columns(path: Path, names: Iterable[str], rows: Iterable[int] | None = None) -> Iterator[dict[str, Tokens]]:
    """Yield the named integer columns of rows of a MindRecord file; of all rows if `rows` is None.

    Raises:
        DataError: the file cannot be read, has fewer rows, or has numbers of more than 32 bits.
    """
    with _reporting_damage(path), path.open("rb") as file:
        layout = read_layout(path)
        for offset, size in _find_entries(path, rows):
            entries = layout.split_row(os.pread(file.fileno(), size, offset))
            yield {name: unpack_row(entries[name]) for name in names}


def count_entries(path: Path) -> int:
    """Return the number of rows of a MindRecord file. Raises DataError when its index cannot be read."""
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
    """Check the sizes within the entries of rows, from which MindSpore computes addresses without checking them.

    A damaged size ends the process with a segmentation fault there. Values of ids are not checked.

    Args:
        path: A MindRecord file.
        rows: Numbers of the rows to check; all if None.
        row_length: The number of ids that a row must have, if known.

    Raises:
        DataError: a row is damaged, or the file cannot be read or has fewer rows.
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
    """Return (offset, size) in bytes of the entries of rows, as the index has them; of all rows if None."""
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
