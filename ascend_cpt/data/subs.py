"""One sub: its part of the input read, tokenized, packed and written. This is what runs in the worker processes.

A sub's work is committed by its result file, written last: a sub that has one is whole and is not done again.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.data.documents import Document, Reject, Tally, extract_documents
from ascend_cpt.data.files import checksum_file, write_text_atomic
from ascend_cpt.data.handlers import load_handler
from ascend_cpt.data.manifest import Shard
from ascend_cpt.data.mindrecord import INDEX_SUFFIX, MindRecordWriter
from ascend_cpt.data.packing import Layout, Packer
from ascend_cpt.data.readers import ReadOptions
from ascend_cpt.data.spans import read_records
from ascend_cpt.data.splitting import Span
from ascend_cpt.data.tokenizing.base import Engine, TokenizerFile
from ascend_cpt.data.tokenizing.choice import EngineChoice, make_engine
from ascend_cpt.errors import DataError

RESULT_FILE = "result.json"

_BATCH_CHARS = 1 << 20
_BATCH_DOCUMENTS = 4096


@dataclass(frozen=True, kw_only=True)
class SubTask:
    """All that a worker needs to know about a sub."""

    number: int
    spans: tuple[Span, ...]
    folder: Path
    """The sub's own folder, emptied first."""
    file_names: tuple[str, ...]
    """The data file of each key."""
    keys: tuple[str, ...]
    handler_name: str
    read_options: ReadOptions
    tokenizer: TokenizerFile
    engine: EngineChoice
    layout: Layout


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a sub has come."""

    weight: int
    """Of its spans' weight."""
    num_documents: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class SubResult:
    """What came out of a sub."""

    shards: tuple[Shard, ...]
    """One per key."""
    num_records: int
    num_filtered: int
    rejects: tuple[Reject, ...]


def pack_sub(task: SubTask, report: Callable[[Progress], None]) -> SubResult:
    """Do the sub and commit its result; `report` is called after each batch.

    Raises:
        DataError: the input cannot be read, or the output cannot be written.
    """
    try:
        shutil.rmtree(task.folder, ignore_errors=True)
        task.folder.mkdir(parents=True)
        result = _pack(task, report)
        write_text_atomic(task.folder / RESULT_FILE, json.dumps(dataclasses.asdict(result)))
    except OSError as error:
        raise DataError(f"{error.filename or task.folder}: {error.strerror or error}") from error
    return result


def load_result(folder: Path) -> SubResult | None:
    """Return the committed result in a sub's folder, None when there is none."""
    try:
        record = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return SubResult(
        shards=tuple(Shard(**shard) for shard in record["shards"]),
        num_records=record["num_records"],
        num_filtered=record["num_filtered"],
        rejects=tuple(Reject(**reject) for reject in record["rejects"]),
    )


def _pack(task: SubTask, report: Callable[[Progress], None]) -> SubResult:
    engine = _load_engine(task)
    tally = Tally()
    outputs = [_Output(task.folder / name, task.layout) for name in task.file_names]
    for documents, weight in _iter_batches(task, tally):
        for k, output in enumerate(outputs):
            output.add(engine, [document.texts[k] for document in documents])
            output.text_bytes += sum(document.text_bytes[k] for document in documents)
        num_tokens = sum(output.packer.num_tokens for output in outputs)
        report(Progress(weight=weight, num_documents=tally.num_documents, num_tokens=num_tokens))
    tally.check()
    return SubResult(
        shards=tuple(output.close(tally.num_documents) for output in outputs),
        num_records=tally.num_records,
        num_filtered=tally.num_filtered,
        rejects=tuple(tally.rejects),
    )


class _Output:
    """The file of one key: packs ids into rows and writes these."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.packer = Packer(layout)
        self.text_bytes = 0
        self._path = path
        self._row_tokens = layout.seq_length + 1
        self._writer = MindRecordWriter(path)

    def add(self, engine: Engine, texts: Sequence[str]) -> None:
        self._writer.write(self.packer.add(engine.encode_batch(texts)))

    def close(self, num_documents: int) -> Shard:
        tail = self.packer.finish()
        self._writer.write(tail.rows)
        self._writer.close()
        num_tokens = self.packer.num_tokens - tail.dropped_tokens
        padding = self._row_tokens - tail.tail_tokens if tail.tail_tokens else 0
        assert self._writer.num_rows * self._row_tokens == num_tokens + padding, "tokens were lost on the way"
        index = self._path.with_name(self._path.name + INDEX_SUFFIX)
        return Shard(
            file=self._path.name,
            size_bytes=self._path.stat().st_size,
            sha256=checksum_file(self._path),
            index_file=index.name,
            index_size_bytes=index.stat().st_size,
            index_sha256=checksum_file(index),
            num_rows=self._writer.num_rows,
            num_tokens=num_tokens,
            num_documents=num_documents,
            text_bytes=self.text_bytes,
            tail_tokens=tail.tail_tokens,
            dropped_tokens=tail.dropped_tokens,
        )


def _iter_batches(task: SubTask, tally: Tally) -> Iterator[tuple[list[Document], int]]:
    """Yield batches of documents with the weight of the input read so far."""
    handler = load_handler(task.handler_name)
    batch: list[Document] = []
    num_chars = weight_before = 0
    for span in task.spans:
        for record in read_records(span, task.read_options, handler):
            for document in extract_documents(handler, task.keys, span.file, record, tally):
                batch.append(document)
                num_chars += sum(map(len, document.texts))
            if num_chars >= _BATCH_CHARS or len(batch) >= _BATCH_DOCUMENTS:
                done = min(record.position, span.stop) - span.start
                yield batch, weight_before + span.weight * done // (span.stop - span.start)
                batch, num_chars = [], 0
        weight_before += span.weight
    if batch:
        yield batch, weight_before


_engine_cache: dict[Any, Engine] = {}


def _load_engine(task: SubTask) -> Engine:
    """The engine, kept from one sub of this process to the next: loading a large vocabulary takes a second."""
    key = (task.tokenizer, task.engine)
    if key not in _engine_cache:
        _engine_cache.clear()
        _engine_cache[key] = make_engine(task.tokenizer, task.engine)
    return _engine_cache[key]
