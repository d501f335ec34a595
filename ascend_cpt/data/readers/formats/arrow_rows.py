"""Extracts records from Arrow record batches for the parquet and arrow readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from ascend_cpt.data.readers.formats.base import INVALID_UTF8, TOO_LONG, Record
from ascend_cpt.data.readers.formats.memory_limit import batch_limit_bytes, limited_memory
from ascend_cpt.data.readers.formats.value_sizes import measure_values
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.errors import DataError
from ascend_cpt.terminal_text import one_line

BATCH_BYTES = 4 << 20
_SLICE_ROWS = 256
_SLICE_BYTES = 8 << 20
_MAX_NESTED_BYTES = 256 << 20
"""Memory of a row with nested values, whose text is shorter than its values."""


def check_columns(file: InputFile, schema: pa.Schema, columns: tuple[str, ...] | None) -> list[str]:
    """Return the columns to read. Raise DataError if a column is missing or occurs twice."""
    if columns is None:
        return list(schema.names)
    for name in columns:
        if name not in schema.names:
            raise DataError(f"{file.path}: no column {name!r}; its columns are: {one_line(', '.join(schema.names))}")
        if schema.names.count(name) > 1:
            raise DataError(f"{file.path}: has several columns {name!r}; rename them")
    return list(columns)


def limit_batches(batches: Iterable[pa.RecordBatch], max_record_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches. Raise pa.ArrowMemoryError or MemoryError if reading one takes too much memory."""
    iterator = iter(batches)
    while True:
        with limited_memory(batch_limit_bytes(max_record_bytes)):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


def iter_rows(
    file: InputFile, batches: Iterable[pa.RecordBatch], first_row: int, start: int, max_record_bytes: int
) -> Iterator[Record]:
    """Yield the rows from index `start` on. The first row in `batches` has index `first_row`."""
    try:
        for batch in limit_batches(batches, max_record_bytes):
            skipped = max(start - first_row, 0)
            for begin in range(skipped, batch.num_rows, _SLICE_ROWS):
                part = batch.slice(begin, _SLICE_ROWS)
                yield from _iter_part(part, first_row + begin, max_record_bytes)
            first_row += batch.num_rows
    except MemoryError as error:
        raise needs_too_much(file, first_row, max_record_bytes) from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path}: cannot be read near row {first_row + 1}: {one_line(error)}") from error


def needs_too_much(file: InputFile, row: int, max_record_bytes: int) -> DataError:
    """Return the error to raise for a batch that takes too much memory."""
    return DataError(
        f"{file.path}: cannot be read near row {row + 1}: needs more than "
        f"{batch_limit_bytes(max_record_bytes) >> 20} MiB at once; write the file with smaller row groups or record "
        "batches, or raise --max-record-bytes"
    )


def _iter_part(part: pa.RecordBatch, first_row: int, max_record_bytes: int) -> Iterator[Record]:
    """Yield a part's rows in pieces that take little memory."""
    sizes = [measure_values(column) for column in part.columns]
    total = sum(size.num_bytes for size in sizes)
    if total > min(_SLICE_BYTES, max_record_bytes):
        if part.num_rows > 1:
            middle = part.num_rows // 2
            yield from _iter_part(part.slice(0, middle), first_row, max_record_bytes)
            yield from _iter_part(part.slice(middle), first_row + middle, max_record_bytes)
            return
        text_bytes = sum(size.num_bytes for size in sizes if not size.is_nested)
        if text_bytes > max_record_bytes or total > max(_MAX_NESTED_BYTES, max_record_bytes):
            yield Record(first_row, first_row + 1, None, TOO_LONG)
            return
    names = part.schema.names
    try:
        columns = [column.to_pylist() for column in part.columns]
    except UnicodeDecodeError:
        yield from _iter_one_by_one(part, first_row)
        return
    for k, values in enumerate(zip(*columns, strict=True), first_row):
        yield Record(k, k + 1, dict(zip(names, values, strict=True)))


def _iter_one_by_one(part: pa.RecordBatch, first_row: int) -> Iterator[Record]:
    """Convert row by row, so that a value that is not UTF-8 causes only its own row to be rejected."""
    for k in range(part.num_rows):
        try:
            row: dict[str, Any] | None = {name: part.column(name)[k].as_py() for name in part.schema.names}
        except UnicodeDecodeError:
            row = None
        yield Record(first_row + k, first_row + k + 1, row, "" if row else INVALID_UTF8)
