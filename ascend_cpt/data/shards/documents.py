"""Yields a shard's documents, without those dropped as duplicates or by filters.

Documents to drop are selected before packing, in passes over the same shards. For each shard, the work folder has one
file per kind with the indices of the dropped documents. Packing counts and lists these documents with the rejects.
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
    names = task.drop_kinds
    numbers, kinds = load_dropped(task.dropped, len(names))
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


def iter_remaining(task: ShardTask) -> Iterator[Located]:
    """Yield the documents that have not been dropped so far, without counting or listing anything."""
    assert task.dropped is not None
    dropped = set(load_dropped(task.dropped, len(task.drop_kinds))[0].tolist())
    return (located for located in iter_documents(task, Tally()) if located.number not in dropped)


def save_dropped(path: Path, numbers: npt.NDArray[np.int64], kind: int) -> None:
    """Append dropped documents of one kind to a shard's file, in any order."""
    with open(_kind_path(path, kind), "ab") as file:
        file.write(numbers.astype("<i8").tobytes())


def load_dropped(path: Path, num_kinds: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the sorted indices of the documents dropped from a shard, and the kind of each."""
    files = [_kind_path(path, kind) for kind in range(num_kinds)]
    parts = [np.fromfile(file, "<i8") if file.exists() else np.empty(0, np.int64) for file in files]
    numbers = np.concatenate([np.empty(0, np.int64), *parts])
    kinds = np.repeat(np.arange(num_kinds), [len(part) for part in parts])
    order = np.argsort(numbers, kind="stable")
    return numbers[order], kinds[order]


def forget_dropped(tasks: Sequence[ShardTask], kind: int) -> None:
    """Remove the dropped documents of one kind."""
    for task in tasks:
        assert task.dropped is not None
        _kind_path(task.dropped, kind).unlink(missing_ok=True)


def with_dropped(tasks: Sequence[ShardTask], folder: Path, kinds: Sequence[str]) -> list[ShardTask]:
    """Return the tasks with the paths of their dropped-document lists in `folder`."""
    return [
        dataclasses.replace(task, dropped=folder / f"{task.number}.left_out", drop_kinds=tuple(kinds)) for task in tasks
    ]


def _kind_path(path: Path, kind: int) -> Path:
    return path.with_name(f"{path.name}.{kind}")


def _list(listing: IO[str], located: Located, kind: str) -> None:
    reject = Reject(
        file=located.file.path, position=located.record.position, line=located.record.line, kind=kind, detail=""
    )
    listing.write(format_reject(reject))
