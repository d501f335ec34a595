"""Finds documents with identical text and keeps the first one in input order.

Each shard writes its document hashes in blocks, sorted by first byte. Equal hashes are then found within one range of
first bytes at a time, so that memory use does not depend on the number of documents.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.readers.documents import Document, Tally
from ascend_cpt.data.shards.documents import iter_documents, save_dropped
from ascend_cpt.data.shards.task import Progress, ShardTask

KIND = "duplicate"

_HASH_BYTES = 16
_ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("number", "<i8")])
_BLOCK_DOCUMENTS = 1 << 20
_NUM_BUCKETS = 256
_PASS_BYTES = 128 << 20
_REPORT_DOCUMENTS = 1024


def hash_shard(task: ShardTask, report: Callable[[Progress], None]) -> None:
    """Write a shard's document hashes next to its list of dropped documents."""
    assert task.dropped is not None
    hashes: list[bytes] = []
    with open(_hashes_path(task.dropped), "wb") as file:
        tally = Tally()
        for located in iter_documents(task, tally):
            hashes.append(_hash(located.document))
            if len(hashes) >= _BLOCK_DOCUMENTS:
                _write_block(file, hashes, located.number + 1)
                hashes = []
            if located.number % _REPORT_DOCUMENTS == 0:
                report(Progress(weight=located.weight, num_documents=located.number, num_tokens=0))
        _write_block(file, hashes, tally.num_documents)


def drop_duplicates(tasks: Sequence[ShardTask], kind: int) -> None:
    """Find duplicates among all shards' hashed documents and save them as dropped documents of the given kind."""
    paths = [task.dropped for task in tasks if task.dropped is not None]
    assert len(paths) == len(tasks)
    total_bytes = sum(_hashes_path(path).stat().st_size for path in paths)
    num_passes = min(_NUM_BUCKETS, total_bytes // _PASS_BYTES + 1)
    boundaries = [_NUM_BUCKETS * k // num_passes for k in range(num_passes + 1)]
    for first, after in itertools.pairwise(boundaries):
        parts = [_read_buckets(_hashes_path(path), first, after) for path in paths]
        entries = np.concatenate(parts)
        shards = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        # The sort is stable, so equal hashes stay in input order.
        order = np.lexsort((entries["low"], entries["high"]))
        entries, shards = entries[order], shards[order]
        is_repeated = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
        numbers, shards = entries["number"][1:][is_repeated], shards[1:][is_repeated]
        for shard in np.unique(shards).tolist():
            save_dropped(paths[shard], numbers[shards == shard], kind)
    for path in paths:
        _hashes_path(path).unlink()


def _hashes_path(dropped: Path) -> Path:
    return dropped.with_suffix(".hashes")


def _hash(document: Document) -> bytes:
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    for text, size in zip(document.texts, document.text_bytes, strict=True):
        digest.update(size.to_bytes(8, "little"))
        digest.update(text.encode())
    return digest.digest()


def _write_block(file: IO[bytes], hashes: Sequence[bytes], end: int) -> None:
    """Write a block: the ends of its 256 buckets, then the entries of the documents before index `end`."""
    entries = np.empty(len(hashes), _ENTRY)
    raw = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, _HASH_BYTES)
    entries["high"], entries["low"] = raw[:, :8].copy().view(">u8")[:, 0], raw[:, 8:].copy().view(">u8")[:, 0]
    entries["number"] = np.arange(end - len(hashes), end)
    buckets = raw[:, 0]
    file.write(np.cumsum(np.bincount(buckets, minlength=_NUM_BUCKETS)).astype("<i8").tobytes())
    file.write(entries[np.argsort(buckets, kind="stable")].tobytes())


def _read_buckets(path: Path, first: int, after: int) -> npt.NDArray[np.void]:
    """Return the entries in buckets `first` to `after` (exclusive), ordered by document within each bucket."""
    return np.concatenate([np.empty(0, _ENTRY), *_iter_buckets(path, first, after)])


def _iter_buckets(path: Path, first: int, after: int) -> Iterator[npt.NDArray[np.void]]:
    offset = 0
    size = path.stat().st_size
    while offset < size:
        ends = np.fromfile(path, "<i8", _NUM_BUCKETS, offset=offset)
        offset += ends.nbytes
        begin, end = int(ends[first - 1]) if first else 0, int(ends[after - 1])
        yield np.fromfile(path, _ENTRY, end - begin, offset=offset + begin * _ENTRY.itemsize)
        offset += int(ends[-1]) * _ENTRY.itemsize
