"""Finds documents with identical text and keeps the first one in input order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from ascend_cpt.data.readers.documents import Document, Tally
from ascend_cpt.data.selection.hash_blocks import begin_blocks, end_blocks, iter_equal, write_block
from ascend_cpt.data.shards.documents import iter_documents, save_dropped
from ascend_cpt.data.shards.task import Progress, ShardTask
from ascend_cpt.files import write_whole

KIND = "duplicate"

_HASH_BYTES = 16
_BLOCK_DOCUMENTS = 1 << 20
_REPORT_DOCUMENTS = 1024


def hash_shard(task: ShardTask, report: Callable[[Progress], None]) -> None:
    """Write a shard's document hashes next to its list of dropped documents, unless they are there."""
    assert task.dropped is not None
    path = _hashes_path(task.dropped)
    if path.exists():
        return
    hashes: list[bytes] = []
    with write_whole(path) as temporary, open(temporary, "wb") as file:
        begin_blocks(file)
        tally = Tally()
        for located in iter_documents(task, tally):
            hashes.append(_hash(located.document))
            if len(hashes) >= _BLOCK_DOCUMENTS:
                _write_block(file, hashes, located.number + 1)
                hashes = []
            if located.number % _REPORT_DOCUMENTS == 0:
                report(Progress(weight=located.weight, num_documents=located.number, num_tokens=0))
        _write_block(file, hashes, tally.num_documents)
        end_blocks(file, tally.num_documents)


def drop_duplicates(tasks: Sequence[ShardTask], kind: int) -> None:
    """Find duplicates among all shards' hashed documents and save them as dropped documents of the given kind."""
    paths = [task.dropped for task in tasks if task.dropped is not None]
    assert len(paths) == len(tasks)
    for _, _, shards, numbers in iter_equal([_hashes_path(path) for path in paths], 0, 1):
        for shard in np.unique(shards).tolist():
            save_dropped(paths[shard], numbers[shards == shard], kind)


def remove_hashes(tasks: Sequence[ShardTask]) -> None:
    """Remove the files of `hash_shard`."""
    for task in tasks:
        assert task.dropped is not None
        _hashes_path(task.dropped).unlink(missing_ok=True)


def _hashes_path(dropped: Path) -> Path:
    return dropped.with_suffix(".hashes")


def _hash(document: Document) -> bytes:
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    for text, size in zip(document.texts, document.text_bytes, strict=True):
        digest.update(size.to_bytes(8, "little"))
        digest.update(text.encode())
    return digest.digest()


def _write_block(file: IO[bytes], hashes: Sequence[bytes], end: int) -> None:
    """Write the hashes of the documents before index `end`."""
    halves = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)
    write_block(file, halves[None, :, 0], halves[None, :, 1], np.arange(end - len(hashes), end))
