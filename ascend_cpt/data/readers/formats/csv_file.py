"""CSV and TSV with a header line. Quoted fields can contain line breaks, so files are always read from the start."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from ascend_cpt.data.readers.formats.base import (
    INVALID_UTF8,
    MALFORMED,
    TOO_LONG,
    Extent,
    LongLine,
    ReadOptions,
    Record,
    iter_lines,
    measure_bytes,
)
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.errors import DataError


def measure(file: InputFile, options: ReadOptions) -> list[Extent]:
    """See `formats.Reader`."""
    return measure_bytes(file)


def read(file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
    """See `formats.Reader`."""
    csv.field_size_limit(options.max_record_bytes + 1)  # rows are limited below, with their line ends
    lines = _Lines(file, options.max_record_bytes)
    delimiter = "\t" if file.format == "tsv" else ","
    rows = csv.reader(lines.iter_text(), strict=True, delimiter=delimiter)
    try:
        header = next(rows, None)
    except _RowTooLongError as error:
        raise DataError(f"{file.path}:1: the header line is longer than --max-record-bytes") from error
    except csv.Error as error:
        raise DataError(f"{file.path}:1: the header line is malformed: {error}") from error
    if header is None:
        return
    while True:
        line, position = lines.number + rows.line_num + 1, lines.position
        lines.begins_row = True
        try:
            fields = next(rows)
        except StopIteration:
            return
        except _RowTooLongError:
            rows = csv.reader(lines.iter_text(), strict=True, delimiter=delimiter)
            if position >= start:
                yield Record(position, line, None, TOO_LONG)
            continue
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


class _RowTooLongError(Exception):
    """A row's lines exceeded the length limit and have been skipped."""


class _Lines:
    """A file's lines, decoded for the csv module.

    Bytes that are not UTF-8 are decoded to lone surrogates, so that only the row containing them is rejected.
    """

    def __init__(self, file: InputFile, max_bytes: int) -> None:
        self.number = 0
        """Lines before those of `iter_text`."""
        self.position = 0
        """Position of the next line."""
        self.begins_row = True
        """Set by the reader before each row."""
        self._size_bytes = file.size_bytes
        self._limit = max_bytes + 1  # including the line feed after the last line
        self._lines = iter_lines(file, 0, max_bytes)
        self._following = next(self._lines, None)

    def iter_text(self) -> Iterator[str]:
        """Yield the lines that follow. Raise _RowTooLongError after skipping a row that is too long."""
        lines, limit, end = self._lines, self._limit, self._size_bytes
        following = self._following
        number = row_bytes = 0
        while following is not None:
            line = following[2]
            following = next(lines, None)
            self.position = end if following is None else following[0]
            number += 1
            if self.begins_row:
                self.begins_row = False
                row_bytes = 0
            before = row_bytes
            row_bytes += len(line) + 1
            if row_bytes > limit:
                self._following = following
                self.number += number
                # A row continues on another line only within quotes.
                self._skip_row(line, is_quoted=before > 0)
                raise _RowTooLongError
            yield line.decode("utf-8", "surrogateescape") + "\n"  # type: ignore[union-attr]

    def _skip_row(self, line: bytes | LongLine, *, is_quoted: bool) -> None:
        while True:
            num_quotes = line.num_quotes if isinstance(line, LongLine) else line.count(b'"')
            is_quoted ^= num_quotes % 2 == 1
            self.position = self._size_bytes if self._following is None else self._following[0]
            if not is_quoted or self._following is None:
                return
            line = self._following[2]
            self._following = next(self._lines, None)
            self.number += 1


def _is_utf8(field: str) -> bool:
    try:
        field.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
