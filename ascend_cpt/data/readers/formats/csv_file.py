"""CSV and TSV with a header line. Quoted fields can contain line ends, so files are always read from the start."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from ascend_cpt.data.readers.formats.base import (
    INVALID_UTF8,
    MALFORMED,
    Extent,
    ReadOptions,
    Record,
    iter_lines,
    measure_bytes,
)
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.errors import DataError

_MAX_FIELD_CHARS = 256 << 20


def measure(file: InputFile) -> list[Extent]:
    """See `formats.Reader`."""
    return measure_bytes(file)


def read(file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
    """See `formats.Reader`."""
    csv.field_size_limit(_MAX_FIELD_CHARS)
    positions = [0]
    rows = csv.reader(_decode_lines(file, positions), strict=True, delimiter="\t" if file.format == "tsv" else ",")
    try:
        header = next(rows, None)
    except csv.Error as error:
        raise DataError(f"{file.path}:1: the header line is malformed: {error}") from error
    if header is None:
        return
    while True:
        line, position = rows.line_num + 1, positions[0]
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error:
            if position >= start:
                yield Record(position, line, None, MALFORMED)
            continue
        if position >= start and fields:
            yield _make_record(position, line, header, fields)


def must_skim(file: InputFile) -> bool:
    """See `formats.Reader`."""
    return True


def _make_record(position: int, line: int, header: list[str], fields: list[str]) -> Record:
    if len(fields) != len(header):
        return Record(position, line, None, MALFORMED)
    if not all(field.isascii() or _is_utf8(field) for field in fields):
        return Record(position, line, None, INVALID_UTF8)
    return Record(position, line, dict(zip(header, fields, strict=True)))


def _decode_lines(file: InputFile, positions: list[int]) -> Iterator[str]:
    """Yield the lines of the file; `positions[0]` is the start of the next one.

    Bytes that are not UTF-8 are decoded to lone surrogates, so that only their row is rejected.
    """
    lines = iter_lines(file, 0)
    current = next(lines, None)
    while current is not None:
        following = next(lines, None)
        positions[0] = file.size_bytes if following is None else following[0]
        yield current[2].decode("utf-8", "surrogateescape") + "\n"
        current = following


def _is_utf8(field: str) -> bool:
    try:
        field.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
