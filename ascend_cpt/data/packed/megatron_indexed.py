"""Reads and writes Megatron indexed datasets: token ids in `{prefix}.bin` and a document index in `{prefix}.idx`.

The index format (little endian) is: magic, version (8 bytes), dtype code (1), number of sequences (8), number of
document boundaries (8), int32 lengths and int64 byte offsets of the sequences, and the int64 index of each document's
first sequence. The writer uses one sequence per document.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.tokenizing.base import Encoded
from ascend_cpt.errors import DataError

DATA_SUFFIX = ".bin"
INDEX_SUFFIX = ".idx"

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_VERSION = 1
_TYPE_CODES: dict[int, type[np.integer[Any]]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
_MAX_UINT16_VOCABULARY = 65500
_COPY_BYTES = 64 << 20


def choose_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the dtype that Megatron uses for this vocabulary size."""
    return np.dtype(np.uint16 if vocab_size < _MAX_UINT16_VOCABULARY else np.int32)


class IndexedReader:
    """A memory-mapped indexed dataset.

    Raises:
        DataError: a file is missing or invalid, or the files do not match each other.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.data_path, self.index_path = Path(f"{prefix}{DATA_SUFFIX}"), Path(f"{prefix}{INDEX_SUFFIX}")
        try:
            index = np.memmap(self.index_path, np.uint8, "r")
            magic, version, code, num_sequences, num_boundaries = _HEADER.unpack_from(index[: _HEADER.size].tobytes())
            if magic != _MAGIC or version != _VERSION or code not in _TYPE_CODES:
                raise DataError(f"{self.index_path}: not the index of an indexed dataset (.idx) of version {_VERSION}")
            self.dtype = np.dtype(_TYPE_CODES[code])
            sizes = [4 * num_sequences, 8 * num_sequences, 8 * num_boundaries]
            if index.size != _HEADER.size + sum(sizes):
                raise DataError(f"{self.index_path}: the index is truncated; copy it again")
            lengths, starts, boundaries = np.split(index[_HEADER.size :], np.cumsum(sizes[:-1]))
            num_bytes = self.data_path.stat().st_size
        except (OSError, ValueError, struct.error) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{prefix}: no readable {DATA_SUFFIX} and {INDEX_SUFFIX} files: {error}") from error
        ends = np.concatenate(([0], np.cumsum(lengths.view("<i4"), dtype=np.int64)))
        is_contiguous = np.array_equal(starts.view("<i8"), ends[:-1] * self.dtype.itemsize)
        if not is_contiguous or num_bytes != ends[-1] * self.dtype.itemsize:
            raise DataError(f"{self.data_path}: does not match {self.index_path}; copy both again")
        firsts = boundaries.view("<i8")
        are_ordered = firsts.size and firsts[0] == 0 and firsts[-1] == num_sequences and (np.diff(firsts) >= 0).all()
        if not are_ordered or (lengths.view("<i4") < 0).any():
            raise DataError(f"{self.index_path}: has impossible lengths or document boundaries; copy it again")
        self._boundaries: npt.NDArray[np.int64] = ends[firsts]
        """Token offsets: document k, of one or more sequences, is between boundaries k and k + 1."""
        self.lengths: npt.NDArray[np.int64] = np.diff(self._boundaries)
        self.ids = np.memmap(self.data_path, self.dtype, "r") if num_bytes else np.empty(0, self.dtype)
        """Ids of all documents, concatenated."""

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, begin: int, end: int) -> Encoded:
        """Return documents `begin` to `end` (exclusive)."""
        boundaries = self._boundaries[begin : end + 1]
        return Encoded(self.ids[boundaries[0] : boundaries[-1]].astype(np.int32), boundaries - boundaries[0])


class IndexedWriter:
    """Writes documents to an indexed dataset. The index is written on close."""

    def __init__(self, prefix: Path, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._data = Path(f"{prefix}{DATA_SUFFIX}").open("wb")  # noqa: SIM115
        self._index_path = Path(f"{prefix}{INDEX_SUFFIX}")
        self._lengths: list[npt.NDArray[np.int64]] = []

    def write(self, documents: Encoded) -> None:
        self._data.write(documents.ids.astype(self._dtype).data)
        self._lengths.append(np.diff(documents.offsets))

    def close(self) -> None:
        self._data.close()
        write_index(self._index_path, self._dtype, np.concatenate([np.empty(0, np.int64), *self._lengths]))


def write_index(path: Path, dtype: np.dtype[Any], lengths: npt.NDArray[np.integer[Any]]) -> None:
    """Write the index for documents with the given lengths."""
    code = next(code for code, known in _TYPE_CODES.items() if np.dtype(known) == dtype)
    offsets = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], out=offsets[1:])
    with path.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, _VERSION, code, len(lengths), len(lengths) + 1))
        file.write(lengths.astype("<i4").data)
        file.write((offsets * dtype.itemsize).astype("<i8").data)
        file.write(np.arange(len(lengths) + 1, dtype="<i8").data)


def join_parts(prefixes: Iterable[Path], target: Path) -> None:
    """Concatenate indexed datasets with the same dtype into one at prefix `target`."""
    lengths: list[npt.NDArray[np.int64]] = []
    dtype: np.dtype[Any] | None = None
    with Path(f"{target}{DATA_SUFFIX}").open("wb") as data:
        for prefix in prefixes:
            part = IndexedReader(prefix)
            dtype = part.dtype
            lengths.append(part.lengths)
            with part.data_path.open("rb") as source:
                while os.sendfile(data.fileno(), source.fileno(), None, _COPY_BYTES):
                    pass
    assert dtype is not None, "there is at least one part"
    write_index(Path(f"{target}{INDEX_SUFFIX}"), dtype, np.concatenate(lengths))


def iter_documents(reader: IndexedReader, begin: int, end: int, batch_tokens: int) -> Iterator[tuple[int, Encoded]]:
    """Yield (index of the next document, batch) for documents `begin` to `end`, in batches of bounded size."""
    ends = np.cumsum(reader.lengths[begin:end], dtype=np.int64)
    first = 0
    while first < end - begin:
        wanted = (int(ends[first - 1]) if first else 0) + batch_tokens
        after = max(first + 1, int(np.searchsorted(ends, wanted, "right")))
        yield begin + after, reader.read(begin + first, begin + after)
        first = after
