"""Yields a shard's documents, without those dropped as duplicates or by filters.

Documents to drop are selected before packing, in passes over the same shards. The work folder has one file per shard
with the index and kind of each dropped document. Packing counts and lists these documents with the rejects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.readers.documents import Document, Reject, Tally, extract_documents, format_reject
from ascend_cpt.data.readers.formats import Record
from ascend_cpt.data.readers.handlers import load_handler
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.data.readers.records import read_records
from ascend_cpt.data.shards.task import ShardTask

LISTING_FILE = "left_out.jsonl"
"""List of the dropped documents in the folder of a shard."""


class Located(NamedTuple):
    """A document and its position in the input."""

    number: int
    """Index among the valid documents of the shard."""
    document: Document
    file: InputFile
    record: Record
    weight: int
    """Weight of the input of the shard before it."""


def iter_documents(task: ShardTask, tally: Tally) -> Iterator[Located]:
    """Yield a shard's valid documents and update `tally`."""
    handler = load_handler(task.handler_name)
    number = weight_before = 0
    max_bytes = task.read_options.max_record_bytes
    for span in task.spans:
        for record in read_records(span, task.read_options, handler):
            done = min(record.position, span.stop) - span.start
            weight = weight_before + span.weight * done // (span.stop - span.start)
            for document in extract_documents(handler, task.keys, span.file, record, tally, max_bytes):
                yield Located(number, document, span.file, record, weight)
                number += 1
        weight_before += span.weight


def iter_selected(task: ShardTask, tally: Tally) -> Iterator[Located]:
    """Yield the documents that are not dropped. Count and list the dropped ones."""
    if task.dropped is None:
        yield from iter_documents(task, tally)
        return
    numbers, kinds = load_dropped(task.dropped)
    names = task.drop_kinds
    cursor = 0
    with open(task.folder / LISTING_FILE, "w", encoding="utf-8") as listing:
        for located in iter_documents(task, tally):
            if cursor < len(numbers) and numbers[cursor] == located.number:
                kind = names[int(kinds[cursor])]
                tally.num_documents -= 1
                tally.dropped[kind] = tally.dropped.get(kind, 0) + 1
                _list(listing, located, kind)
                cursor += 1
            else:
                yield located
    assert cursor == len(numbers), "the input changed after the documents to drop were selected"


def save_dropped(path: Path, numbers: npt.NDArray[np.int64], kind: int) -> None:
    """Append dropped documents of one kind to a shard's file, in any order."""
    entries = np.stack([numbers, np.full(len(numbers), kind, np.int64)], 1)
    with open(path, "ab") as file:
        file.write(entries.astype("<i8").tobytes())


def load_dropped(path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the sorted indices of the documents dropped from a shard, and the kind of each."""
    entries = np.fromfile(path, "<i8").reshape(-1, 2) if path.exists() else np.empty((0, 2), np.int64)
    entries = entries[np.argsort(entries[:, 0], kind="stable")]
    return entries[:, 0], entries[:, 1]


def with_dropped(tasks: Sequence[ShardTask], folder: Path, kinds: Sequence[str]) -> list[ShardTask]:
    """Return the tasks with the paths of their dropped-document lists in `folder`."""
    return [
        dataclasses.replace(task, dropped=folder / f"{task.number}.left_out", drop_kinds=tuple(kinds)) for task in tasks
    ]


def _list(listing: IO[str], located: Located, kind: str) -> None:
    reject = Reject(
        file=located.file.path, position=located.record.position, line=located.record.line, kind=kind, detail=""
    )
    listing.write(format_reject(reject))
