"""Parquet, read by row group in small batches."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from ascend_cpt.data.readers.formats.arrow_rows import BATCH_BYTES, check_columns, iter_rows
from ascend_cpt.data.readers.formats.base import Extent, ReadOptions, Record
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.errors import DataError


def measure(file: InputFile) -> list[Extent]:
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
            group = parquet.metadata.row_group(k)
            if first_row + group.num_rows > start and group.num_rows:
                batch_size = max(1, min(group.num_rows, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
                batches = parquet.iter_batches(
                    batch_size=batch_size, row_groups=[k], columns=columns, use_threads=False
                )
                yield from iter_rows(file, batches, first_row, start)
            first_row += group.num_rows


def must_skim(file: InputFile) -> bool:
    """See `formats.Reader`."""
    return False


def _open(file: InputFile) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file.path, pre_buffer=False, buffer_size=1 << 20)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path}: not a readable parquet file: {error}") from error
