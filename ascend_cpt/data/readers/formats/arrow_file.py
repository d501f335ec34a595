"""Arrow IPC: the file format (also called feather) and the stream format (used by Hugging Face datasets)."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from ascend_cpt.data.readers.formats.arrow_rows import check_columns, iter_rows, limit_batches, needs_too_much
from ascend_cpt.data.readers.formats.base import Extent, ReadOptions, Record
from ascend_cpt.data.readers.formats.memory_limit import batch_limit_bytes, limited_memory
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.errors import DataError
from ascend_cpt.terminal_text import one_line

_FILE_MAGIC = b"ARROW1"
_WITHOUT_ENCODING = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}
_VIEWS = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


def measure(file: InputFile, options: ReadOptions) -> list[Extent]:
    """See `formats.Reader`."""
    _, batches = _open(file)
    extents: list[Extent] = []
    first_row = 0
    try:
        for batch in limit_batches(batches, options.max_record_bytes):
            _validate(file, batch, full=False)
            extents.append(Extent(num_positions=batch.num_rows, weight=max(_count_bytes(batch), batch.num_rows)))
            first_row += batch.num_rows
    except MemoryError as error:
        raise needs_too_much(file, first_row, options.max_record_bytes) from error
    return extents


def read(file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
    """See `formats.Reader`."""
    schema, batches = _open(file)
    columns = check_columns(file, schema, options.columns)
    first_row = 0
    try:
        for batch in limit_batches(batches, options.max_record_bytes):
            if first_row + batch.num_rows > start:
                with limited_memory(batch_limit_bytes(options.max_record_bytes)):
                    chosen = _expand_views(file, _validate(file, batch.select(columns)))
                yield from iter_rows(file, [chosen], first_row, start, options.max_record_bytes)
            first_row += batch.num_rows
    except MemoryError as error:
        raise needs_too_much(file, first_row, options.max_record_bytes) from error


def _validate(file: InputFile, batch: pa.RecordBatch, *, full: bool = True) -> pa.RecordBatch:
    """Return the batch. Raise DataError for impossible offsets or lengths, because reading them could crash.

    Without `full`, only buffer sizes are checked, which is enough for computing the batch's size.
    """
    try:
        for column in batch.columns:
            column.validate()
            if full:
                # Only the row is rejected if its text is not UTF-8.
                plain = _WITHOUT_ENCODING.get(column.type)
                (column if plain is None else column.view(plain)).validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"{file.path}: a record batch is damaged: {one_line(error)}") from error
    return batch


def _count_bytes(batch: pa.RecordBatch) -> int:
    """Return a batch's approximate size, because Arrow does not report the size of views."""
    total = 0
    for column in batch.columns:
        try:
            total += column.nbytes
        except pa.ArrowTypeError:
            total += sum(buffer.size for buffer in column.buffers() if buffer is not None)
    return total


def _expand_views(file: InputFile, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with string_view and binary_view columns converted to large_string and large_binary.

    Several views can show the same bytes, so the conversion runs under the memory limit.
    """
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.type in _VIEWS:
            column = column.cast(pa.large_binary()).view(_VIEWS[column.type])
        elif "_view" in str(column.type):
            raise DataError(
                f"{file.path}: column {name!r} has type {one_line(column.type)}; nested views are not "
                "supported: write it with string, binary or list, or choose other columns"
            )
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def must_skim(file: InputFile) -> bool:
    """See `formats.Reader`."""
    return False


def _open(file: InputFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Open the file memory-mapped, so that batches use memory only while they are accessed."""
    try:
        source = pa.memory_map(file.path)
        is_file = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        source.seek(0)
        with limited_memory(batch_limit_bytes(0)):
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        list(reader.schema.names)  # fails for names that are not UTF-8
    except (pa.ArrowException, MemoryError, OSError, UnicodeError) as error:
        raise DataError(f"{file.path}: not a readable arrow file: {one_line(error)}") from error
    batches = (reader.get_batch(k) for k in range(reader.num_record_batches)) if is_file else iter(reader)
    return reader.schema, _describe_errors(file, batches)


def _describe_errors(file: InputFile, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except MemoryError:  # arrow's own is also an ArrowException
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path}: the arrow file is damaged: {one_line(error)}") from error
