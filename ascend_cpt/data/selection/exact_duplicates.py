"""Finding documents whose text was there before, letter for letter: the first in the input's order stays.

Each shard writes the hashes of its documents in blocks, sorted by their first byte. Then equal hashes are looked for in
one range of first bytes after the other, so memory is bounded whatever the number of documents.
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
_LOOKED_AT_BYTES = 128 << 20
_REPORT_DOCUMENTS = 1024


def hash_shard(task: ShardTask, report: Callable[[Progress], None]) -> None:
    """Write the hashes of a shard's documents beside the file that will list those dropped."""
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
    """Enter the duplicates among the documents that all shards have hashed, as of the kind with this number."""
    paths = [task.dropped for task in tasks if task.dropped is not None]
    assert len(paths) == len(tasks)
    total_bytes = sum(_hashes_path(path).stat().st_size for path in paths)
    num_looks = min(_NUM_BUCKETS, total_bytes // _LOOKED_AT_BYTES + 1)
    boundaries = [_NUM_BUCKETS * k // num_looks for k in range(num_looks + 1)]
    for first, after in itertools.pairwise(boundaries):
        parts = [_read_buckets(_hashes_path(path), first, after) for path in paths]
        entries = np.concatenate(parts)
        shards = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        # The sort is stable: of equal hashes the first in the input's order comes first.
        order = np.lexsort((entries["low"], entries["high"]))
        entries, shards = entries[order], shards[order]
        again = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
        numbers, shards = entries["number"][1:][again], shards[1:][again]
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
    """A block: where each of the 256 buckets ends in it, then the entries of documents up to the number `end`."""
    entries = np.empty(len(hashes), _ENTRY)
    raw = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, _HASH_BYTES)
    entries["high"], entries["low"] = raw[:, :8].copy().view(">u8")[:, 0], raw[:, 8:].copy().view(">u8")[:, 0]
    entries["number"] = np.arange(end - len(hashes), end)
    buckets = raw[:, 0]
    file.write(np.cumsum(np.bincount(buckets, minlength=_NUM_BUCKETS)).astype("<i8").tobytes())
    file.write(entries[np.argsort(buckets, kind="stable")].tobytes())


def _read_buckets(path: Path, first: int, after: int) -> npt.NDArray[np.void]:
    """The entries in the buckets `first` to `after` (without it), those of one bucket in the order of documents."""
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
