"""Arrow IPC: the file format (also called feather) and the stream format (used by Hugging Face datasets)."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from ascend_cpt.data.readers.formats.arrow_rows import check_columns, iter_rows
from ascend_cpt.data.readers.formats.base import Extent, ReadOptions, Record
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.errors import DataError

_FILE_MAGIC = b"ARROW1"


def measure(file: InputFile) -> list[Extent]:
    """See `formats.Reader`."""
    _, batches = _open(file)
    return [Extent(num_positions=batch.num_rows, weight=max(batch.nbytes, batch.num_rows)) for batch in batches]


def read(file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
    """See `formats.Reader`."""
    schema, batches = _open(file)
    columns = check_columns(file, schema, options.columns)
    first_row = 0
    for batch in batches:
        if first_row + batch.num_rows > start:
            yield from iter_rows(file, [batch.select(columns)], first_row, start)
        first_row += batch.num_rows


def must_skim(file: InputFile) -> bool:
    """See `formats.Reader`."""
    return False


def _open(file: InputFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Open the file memory-mapped, so that batches use memory only while they are accessed."""
    try:
        source = pa.memory_map(file.path)
        is_file = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path}: not a readable arrow file: {error}") from error
    if is_file:
        return reader.schema, (reader.get_batch(k) for k in range(reader.num_record_batches))
    return reader.schema, _iter_stream(file, reader)


def _iter_stream(file: InputFile, reader: pa.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
    try:
        yield from reader
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path}: the arrow stream is broken: {error}") from error
