"""Reading the records of a span, and joining those that are one document."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ascend_cpt.data.readers.formats import ReadOptions, Record, load_reader
from ascend_cpt.data.readers.handlers import Handler
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.data.readers.spans import Span


def read_records(span: Span, options: ReadOptions, handler: Handler) -> Iterator[Record]:
    """Yield the span's records; where the handler joins records, the joined ones that begin in the span."""
    begins_document = getattr(handler, "begins_document", None)
    cursor = _open_cursor(span, options)
    return _read_single(cursor, span) if begins_document is None else _read_joined(cursor, span, begins_document)


class _Cursor:
    """Goes through a file's records, with one step back."""

    def __init__(self, file: InputFile, options: ReadOptions, start: int) -> None:
        self.file = file
        self.options = options
        self.safe_start = start
        """A span that begins here or later has all its records still to come."""
        self._records = load_reader(file.format).read(file, start, options)
        self._returned: Record | None = None

    def next(self) -> Record | None:
        """The next record, None at the end of the file."""
        record, self._returned = self._returned or next(self._records, None), None
        if record is not None:
            self.safe_start = record.position + 1
        return record

    def step_back(self, record: Record, stop: int) -> None:
        """Have `record`, the last one, come again; it is the first that a span from `stop` on would begin with."""
        self._returned = record
        self.safe_start = stop


_last_cursor: _Cursor | None = None


def _open_cursor(span: Span, options: ReadOptions) -> _Cursor:
    """A cursor at the span's start: where a file has to be skimmed, the last one goes on if it is not past it."""
    global _last_cursor
    last = _last_cursor
    is_good = last is not None and (last.file, last.options) == (span.file, options)
    if last is None or not is_good or last.safe_start > span.start:
        last = _Cursor(span.file, options, span.start)
    _last_cursor = last if load_reader(span.file.format).must_skim(span.file) else None
    return last


def _read_single(cursor: _Cursor, span: Span) -> Iterator[Record]:
    while (record := cursor.next()) is not None:
        if record.position >= span.stop:
            cursor.step_back(record, span.stop)
            return
        if record.position >= span.start:
            yield record


def _read_joined(cursor: _Cursor, span: Span, begins_document: Callable[[Mapping[str, Any]], bool]) -> Iterator[Record]:
    """Joined records that begin in the span.

    The last one may run on past it, and the rest of one that began before is passed over. A bad record inside comes by
    itself.
    """
    parts: list[Record] = []
    is_ours = span.start == 0 < span.stop
    while (record := cursor.next()) is not None:
        begins = record.row is not None and begins_document(record.row)
        if begins and record.position >= span.stop:
            cursor.step_back(record, span.stop)
            break
        if begins:
            yield from _join(parts)
            is_ours = record.position >= span.start
            parts = [record] if is_ours else []
        elif is_ours and record.row is None:
            yield record
        elif is_ours:
            parts.append(record)
    yield from _join(parts)


def _join(parts: Sequence[Record]) -> Iterator[Record]:
    """The lines as one record, without blank ones at its end; none when all are blank."""
    if not parts:
        return
    rows: list[Mapping[str, Any]] = [part.row for part in parts if part.row is not None]
    row = {key: _join_lines([row.get(key) for row in rows]) for key in rows[0]}
    if any(text != "" for text in row.values()):
        yield Record(parts[0].position, parts[0].line, row)


def _join_lines(lines: Sequence[Any]) -> Any:
    """The joined text; a line that is no text instead, so that the document is rejected for it."""
    for line in lines:
        if not isinstance(line, str):
            return line
    return "\n".join(line.rstrip("\r\n") for line in lines).rstrip()
