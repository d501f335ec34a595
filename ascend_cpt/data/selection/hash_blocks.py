"""Files of 128-bit hashes of documents, in which equal hashes are found with bounded memory.

A file has the number of documents of a shard, followed by blocks. A block has, for each of `num_bands` bands, the ends
of 256 buckets and the entries of its documents, sorted by bucket (the first byte of the hash). Equal hashes are found
within a range of buckets of one band at a time, so that memory use does not depend on the number of documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<i8")])

_NUM_BUCKETS = 256
_ENDS_BYTES = 8 * _NUM_BUCKETS
_HEADER_BYTES = 8
_PASS_BYTES = 128 << 20


def begin_blocks(file: IO[bytes]) -> None:
    """Leave room for the number of documents."""
    file.write(bytes(_HEADER_BYTES))


def write_block(file: IO[bytes], high: Array, low: Array, numbers: Array) -> None:
    """Write a block with the hashes of documents in ascending order. `high` and `low` have one row per band."""
    for band_high, band_low in zip(high, low, strict=True):
        entries = np.empty(len(numbers), ENTRY)
        entries["high"], entries["low"], entries["number"] = band_high, band_low, numbers
        buckets = (band_high >> np.uint64(56)).astype(np.int64)
        file.write(np.cumsum(np.bincount(buckets, minlength=_NUM_BUCKETS)).astype("<i8").tobytes())
        file.write(entries[np.argsort(buckets, kind="stable")].tobytes())


def end_blocks(file: IO[bytes], num_documents: int) -> None:
    """Write the number of documents of the shard."""
    file.seek(0)
    file.write(num_documents.to_bytes(_HEADER_BYTES, "little"))


def read_num_documents(path: Path) -> int:
    """Return the number of documents of the shard."""
    with open(path, "rb") as file:
        return int.from_bytes(file.read(_HEADER_BYTES), "little")


def iter_equal(paths: Sequence[Path], band: int, num_bands: int) -> Iterator[tuple[Array, Array, Array, Array]]:
    """Yield for documents whose hash in a band an earlier document has: its first document's shard and number, and
    their own shards and numbers.

    Shards are indices of `paths`.
    """
    total_bytes = sum(path.stat().st_size for path in paths) // num_bands
    num_passes = min(_NUM_BUCKETS, total_bytes // _PASS_BYTES + 1)
    boundaries = [_NUM_BUCKETS * k // num_passes for k in range(num_passes + 1)]
    for first, after in itertools.pairwise(boundaries):
        parts = [_read_buckets(path, band, num_bands, first, after) for path in paths]
        entries = np.concatenate(parts)
        shards = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        # The sort is stable, so equal hashes stay in input order.
        order = np.lexsort((entries["low"], entries["high"]))
        entries, shards = entries[order], shards[order]
        is_repeated = np.zeros(len(entries), bool)
        is_repeated[1:] = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
        firsts = np.maximum.accumulate(np.where(is_repeated, 0, np.arange(len(entries))))[is_repeated]
        numbers = entries["number"]
        yield shards[firsts], numbers[firsts], shards[is_repeated], numbers[is_repeated]


def _read_buckets(path: Path, band: int, num_bands: int, first: int, after: int) -> Array:
    """Return the entries in buckets `first` to `after` (exclusive), ordered by document within each bucket."""
    return np.concatenate([np.empty(0, ENTRY), *_iter_buckets(path, band, num_bands, first, after)])


def _iter_buckets(path: Path, band: int, num_bands: int, first: int, after: int) -> Iterator[Array]:
    offset = _HEADER_BYTES
    size = path.stat().st_size
    while offset < size:
        count = int(np.fromfile(path, "<i8", 1, offset=offset + _ENDS_BYTES - 8)[0])
        band_bytes = _ENDS_BYTES + count * ENTRY.itemsize
        begin = offset + band * band_bytes
        ends = np.fromfile(path, "<i8", _NUM_BUCKETS, offset=begin)
        low, high = int(ends[first - 1]) if first else 0, int(ends[after - 1])
        yield np.fromfile(path, ENTRY, high - low, offset=begin + _ENDS_BYTES + low * ENTRY.itemsize)
        offset += num_bands * band_bytes
