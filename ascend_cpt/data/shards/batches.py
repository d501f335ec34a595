"""Batches of a shard's tokenized documents, from text or from an indexed dataset of ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ascend_cpt.data.packed.megatron_indexed import INDEX_SUFFIX, IndexedReader, iter_documents
from ascend_cpt.data.readers.documents import Document, Tally
from ascend_cpt.data.readers.formats import Record
from ascend_cpt.data.readers.formats.base import TOO_LONG
from ascend_cpt.data.readers.spans import Span
from ascend_cpt.data.shards.documents import iter_selected
from ascend_cpt.data.shards.task import ShardTask
from ascend_cpt.data.tokenizing.base import Encoded, Engine
from ascend_cpt.data.tokenizing.engine_choice import load_engine
from ascend_cpt.errors import DataError

_BATCH_CHARS = 2 << 20
_BATCH_DOCUMENTS = 4096
_BATCH_TOKENS = 1 << 20
_MAX_REFERENCE_BYTES = 3 << 20
"""Longest text for a reference library, which needs about 200 bytes per byte, unless --max-record-bytes is given."""

INDEXED_FORMAT = "indexed"


class Batch(NamedTuple):
    """A batch of documents."""

    encoded: tuple[Encoded, ...]
    """Token ids, for each key."""
    text_bytes: tuple[int, ...]
    """UTF-8 bytes of text, for each key; 0 if unknown."""
    weight: int
    """Weight of the input read so far."""


def iter_batches(task: ShardTask, tally: Tally) -> Iterator[Batch]:
    """Yield the shard's documents and update `tally`."""
    if any(span.file.format == INDEXED_FORMAT for span in task.spans):
        yield from _iter_indexed(task, tally)
        return
    engine = load_engine(task.tokenizer, task.engine)
    for documents, weight in _iter_texts(task, tally, engine):
        texts = zip(*(document.texts for document in documents), strict=True)
        text_bytes = tuple(map(sum, zip(*(document.text_bytes for document in documents), strict=True)))
        yield Batch(tuple(engine.encode_batch(part) for part in texts), text_bytes, weight)


def _iter_texts(task: ShardTask, tally: Tally, engine: Engine) -> Iterator[tuple[list[Document], int]]:
    batch: list[Document] = []
    num_chars = 0
    for located in iter_selected(task, tally):
        chars = sum(map(len, located.document.texts))
        if chars > _MAX_REFERENCE_BYTES // 4 and task.limits_tokenizer and _needs_much_memory(located.document, engine):
            tally.num_documents -= 1
            tally.reject(located.file, located.record, TOO_LONG, f"for {engine.name}; see --max-record-bytes")
            continue
        if num_chars >= _BATCH_CHARS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch, located.weight
            batch, num_chars = [], 0
        batch.append(located.document)
        num_chars += chars
    if batch:
        yield batch, sum(span.weight for span in task.spans)


def _needs_much_memory(document: Document, engine: Engine) -> bool:
    return any(
        num_bytes > _MAX_REFERENCE_BYTES and engine.needs_reference(text)
        for text, num_bytes in zip(document.texts, document.text_bytes, strict=True)
    )


def _iter_indexed(task: ShardTask, tally: Tally) -> Iterator[Batch]:
    """Yield documents from indexed datasets. A trailing EOD is removed, because packing adds one."""
    weight_before = 0
    max_tokens = task.read_options.max_record_bytes  # a token has at least one byte of text
    for span in task.spans:
        reader = IndexedReader(span.file.path.removesuffix(INDEX_SUFFIX))
        for position, documents in _iter_parts(reader, span, max_tokens):
            if documents is None:
                tally.num_records += 1
                tally.reject(span.file, Record(position - 1, position, None), TOO_LONG, f"above {max_tokens} tokens")
                continue
            smallest, largest = int(documents.ids.min(initial=0)), int(documents.ids.max(initial=0))
            if largest >= task.tokenizer.info.vocab_size or smallest < 0:
                wrong = smallest if smallest < 0 else largest
                raise DataError(
                    f"{span.file.path}: contains id {wrong}, but the vocabulary of {task.tokenizer.info.name} has "
                    f"{task.tokenizer.info.vocab_size}: use the tokenizer it was created with"
                )
            if task.layout.eod_id is not None:
                documents = _strip_last(documents, task.layout.eod_id)
            tally.num_records += documents.offsets.size - 1
            tally.num_documents += documents.offsets.size - 1
            done = span.weight * (position - span.start) // (span.stop - span.start)
            yield Batch((documents,), (0,), weight_before + done)
        weight_before += span.weight


def _iter_parts(reader: IndexedReader, span: Span, max_tokens: int) -> Iterator[tuple[int, Encoded | None]]:
    """Yield (index of the next document, batch). For a document longer than `max_tokens`, the batch is None."""
    begin = span.start
    for number in (span.start + np.flatnonzero(reader.lengths[span.start : span.stop] > max_tokens)).tolist():
        yield from iter_documents(reader, begin, number, _BATCH_TOKENS)
        begin = number + 1
        yield begin, None
    yield from iter_documents(reader, begin, span.stop, _BATCH_TOKENS)


def _strip_last(documents: Encoded, token: int) -> Encoded:
    """Remove `token` from the ends of documents."""
    lengths = np.diff(documents.offsets)
    ends = documents.offsets[1:][lengths > 0] - 1
    ends = ends[documents.ids[ends] == token]
    removed = np.zeros(documents.ids.size + 1, np.int64)
    removed[ends + 1] = 1
    return Encoded(np.delete(documents.ids, ends), documents.offsets - np.cumsum(removed)[documents.offsets])
