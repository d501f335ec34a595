"""Reads the records in a span and joins records that form one document."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ascend_cpt.data.readers.formats import ReadOptions, Record, load_reader
from ascend_cpt.data.readers.formats.base import TOO_LONG
from ascend_cpt.data.readers.handlers import Handler
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.data.readers.spans import Span


def read_records(span: Span, options: ReadOptions, handler: Handler) -> Iterator[Record]:
    """Yield the records in the span or, if the handler joins records, the joined records that start in it."""
    begins_document = getattr(handler, "begins_document", None)
    cursor = _open_cursor(span, options)
    if begins_document is None:
        return _read_single(cursor, span)
    return _read_joined(cursor, span, begins_document, options.max_record_bytes)


class _Cursor:
    """Iterates over a file's records. The last record returned can be pushed back."""

    def __init__(self, file: InputFile, options: ReadOptions, start: int) -> None:
        self.file = file
        self.options = options
        self.safe_start = start
        """No record at this position or later has been consumed."""
        self._records = load_reader(file.format).read(file, start, options)
        self._pushed_back: Record | None = None

    def next(self) -> Record | None:
        """Return the next record, or None at the end of the file."""
        record, self._pushed_back = self._pushed_back or next(self._records, None), None
        if record is not None:
            self.safe_start = record.position + 1
        return record

    def push_back(self, record: Record, stop: int) -> None:
        """Push back the last record returned, which is the first one at `stop` or later."""
        self._pushed_back = record
        self.safe_start = stop


_last_cursor: _Cursor | None = None


def _open_cursor(span: Span, options: ReadOptions) -> _Cursor:
    """Return a cursor for the span. Reuse the last cursor, if possible, for files that must be read from the start."""
    global _last_cursor
    last = _last_cursor
    is_same_file = last is not None and (last.file, last.options) == (span.file, options)
    if last is None or not is_same_file or last.safe_start > span.start:
        last = _Cursor(span.file, options, span.start)
    _last_cursor = last if load_reader(span.file.format).must_skim(span.file) else None
    return last


def _read_single(cursor: _Cursor, span: Span) -> Iterator[Record]:
    while (record := cursor.next()) is not None:
        if record.position >= span.stop:
            cursor.push_back(record, span.stop)
            return
        if record.position >= span.start:
            yield record


def _read_joined(
    cursor: _Cursor, span: Span, begins_document: Callable[[Mapping[str, Any]], bool], max_bytes: int
) -> Iterator[Record]:
    """Yield the joined records that start in the span.

    The last one may extend past the span. The remainder of one that started before the span is skipped. Bad records
    are yielded separately.
    """
    if span.start == span.stop:
        return  # reading on to the next title would consume the lines before a file's first title
    document: _JoinedDocument | None = None
    is_in_span = span.start == 0
    while (record := cursor.next()) is not None:
        begins = record.row is not None and begins_document(record.row)
        if begins and record.position >= span.stop:
            cursor.push_back(record, span.stop)
            break
        if begins:
            if document is not None:
                yield from document.finish()
            is_in_span, document = record.position >= span.start, None
        if is_in_span and record.row is None:
            yield record
        elif is_in_span:
            document = document or _JoinedDocument(record, max_bytes)
            document.add(record.row or {})
    if document is not None:
        yield from document.finish()


class _JoinedDocument:
    """Joins records into one, without trailing blank lines, unless the result is too long."""

    def __init__(self, first: Record, max_bytes: int) -> None:
        self._first = first
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._lines: dict[str, list[Any]] = {key: [] for key in first.row or {}}

    def add(self, row: Mapping[str, Any]) -> None:
        for key, lines in self._lines.items():
            line = row.get(key)
            lines.append(line)
            self._num_bytes += len(line) + 1 if isinstance(line, str) else 1
        if self._num_bytes > self._max_bytes:
            for lines in self._lines.values():
                lines.clear()

    def finish(self) -> Iterator[Record]:
        """Yield the document, or nothing if all lines are blank."""
        if self._num_bytes > self._max_bytes:
            yield Record(self._first.position, self._first.line, None, TOO_LONG)
            return
        row = {key: _join_lines(lines) for key, lines in self._lines.items()}
        if any(text != "" for text in row.values()):
            yield Record(self._first.position, self._first.line, row)


def _join_lines(lines: Sequence[Any]) -> Any:
    """Return the joined text, or a non-string value so that the document is rejected."""
    for line in lines:
        if not isinstance(line, str):
            return line
    return "\n".join(line.rstrip("\r\n") for line in lines).rstrip()
