"""Records from arrow record batches, for the parquet and arrow readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from ascend_cpt.data.readers.formats.base import INVALID_UTF8, Record
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.errors import DataError

BATCH_BYTES = 4 << 20
_SLICE_ROWS = 256


def check_columns(file: InputFile, schema: pa.Schema, columns: tuple[str, ...] | None) -> list[str]:
    """Return the columns to read; raise DataError if one is missing."""
    if columns is None:
        return list(schema.names)
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise DataError(f"{file.path}: no column {missing[0]!r}; its columns are: {', '.join(schema.names)}")
    return list(columns)


def iter_rows(file: InputFile, batches: Iterable[pa.RecordBatch], first_row: int, start: int) -> Iterator[Record]:
    """Yield the rows from number `start` on; the first row of `batches` has number `first_row`."""
    try:
        for batch in batches:
            skipped = max(start - first_row, 0)
            for begin in range(skipped, batch.num_rows, _SLICE_ROWS):
                part = batch.slice(begin, _SLICE_ROWS)
                yield from _iter_part(part, first_row + begin)
            first_row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path}: cannot be read near row {first_row + 1}: {error}") from error


def _iter_part(part: pa.RecordBatch, first_row: int) -> Iterator[Record]:
    names = part.schema.names
    try:
        columns = [column.to_pylist() for column in part.columns]
    except UnicodeDecodeError:
        yield from _iter_one_by_one(part, first_row)
        return
    for k, values in enumerate(zip(*columns, strict=True), first_row):
        yield Record(k, k + 1, dict(zip(names, values, strict=True)))


def _iter_one_by_one(part: pa.RecordBatch, first_row: int) -> Iterator[Record]:
    """Convert row by row, so that a value that is not UTF-8 only rejects its own row."""
    for k in range(part.num_rows):
        try:
            row: dict[str, Any] | None = {name: part.column(name)[k].as_py() for name in part.schema.names}
        except UnicodeDecodeError:
            row = None
        yield Record(first_row + k, first_row + k + 1, row, "" if row else INVALID_UTF8)
