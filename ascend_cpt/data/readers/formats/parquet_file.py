"""Parquet, read by row group in small batches."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from ascend_cpt.data.readers.formats.arrow_rows import BATCH_BYTES, check_columns, iter_rows
from ascend_cpt.data.readers.formats.base import Extent, ReadOptions, Record
from ascend_cpt.data.readers.formats.memory_limit import batch_limit_bytes, limited_memory
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.errors import DataError
from ascend_cpt.terminal_text import one_line


def measure(file: InputFile, options: ReadOptions) -> list[Extent]:
    """See `formats.Reader`."""
    with _open(file) as parquet:
        groups = [parquet.metadata.row_group(k) for k in range(parquet.metadata.num_row_groups)]
        return [
            Extent(num_positions=group.num_rows, weight=max(group.total_byte_size, group.num_rows)) for group in groups
        ]


def read(file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
    """See `formats.Reader`."""
    with _open(file) as parquet:
        columns = check_columns(file, parquet.schema_arrow, options.columns)
        first_row = 0
        for k in range(parquet.metadata.num_row_groups):
            num_rows = parquet.metadata.row_group(k).num_rows
            if first_row + num_rows > start and num_rows > 0:
                yield from _read_group(file, parquet, k, columns, first_row, start, options.max_record_bytes)
            first_row += num_rows


def _read_group(
    file: InputFile,
    parquet: pq.ParquetFile,
    number: int,
    columns: list[str],
    first_row: int,
    start: int,
    max_record_bytes: int,
) -> Iterator[Record]:
    """Yield a row group's rows. The group's first row has index `first_row` in the file."""
    group = parquet.metadata.row_group(number)
    batch_size = max(1, min(group.num_rows, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
    while True:
        batches = parquet.iter_batches(batch_size=batch_size, row_groups=[number], columns=columns, use_threads=False)
        try:
            for record in iter_rows(file, batches, first_row, start, max_record_bytes):
                start = record.position + 1
                yield record
            if start != first_row + group.num_rows:
                raise DataError(
                    f"{file.path}: row group {number + 1} has {max(start - first_row, 0)} rows, but its metadata "
                    f"states {group.num_rows}; write the file again"
                )
            return
        except DataError as error:
            # The metadata gives the encoded size; repeated values can take much more space when decoded.
            if batch_size == 1 or not isinstance(error.__cause__, MemoryError):
                raise
            batch_size = max(1, batch_size // 16)


def must_skim(file: InputFile) -> bool:
    """See `formats.Reader`."""
    return False


def _open(file: InputFile) -> pq.ParquetFile:
    try:
        with limited_memory(batch_limit_bytes(0)):
            parquet = pq.ParquetFile(file.path, pre_buffer=False, buffer_size=1 << 20)
        groups = [parquet.metadata.row_group(k) for k in range(parquet.metadata.num_row_groups)]
        if any(group.num_rows < 0 or group.total_byte_size < 0 for group in groups):
            raise pa.ArrowInvalid("a row group has a negative size")
        list(parquet.schema_arrow.names)  # fails for names that are not UTF-8
        return parquet
    except (pa.ArrowException, MemoryError, OSError, UnicodeError) as error:
        raise DataError(f"{file.path}: not a readable parquet file: {one_line(error)}") from error
