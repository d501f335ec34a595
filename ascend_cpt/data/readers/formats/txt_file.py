"""Plain text: a record is a line, a paragraph between blank lines, or the whole file."""

from __future__ import annotations

from collections.abc import Iterator

from ascend_cpt.data.readers.formats.base import (
    INVALID_UTF8,
    TOO_LONG,
    Extent,
    LongLine,
    ReadOptions,
    Record,
    iter_lines,
    measure_bytes,
)
from ascend_cpt.data.readers.formats.byte_stream import BYTE_ORDER_MARK, ByteStream
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.data.readers.regular_files import open_regular

COLUMN = "text"
"""Name of the only column of a text file."""

_LOOK_BACK_BYTES = 4096


def measure(file: InputFile, options: ReadOptions) -> list[Extent]:
    """See `formats.Reader`."""
    return measure_bytes(file)


def must_skim(file: InputFile) -> bool:
    """See `formats.Reader`."""
    return bool(file.compression)


def read(file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
    """See `formats.Reader`."""
    if options.txt_documents == "file":
        return _read_whole(file, start, options.max_record_bytes)
    if options.txt_documents == "blank-line":
        return _read_paragraphs(file, start, options.max_record_bytes)
    assert options.txt_documents == "line"
    return _read_lines(file, start, options)


def _read_lines(file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
    keeps_blank = options.keep_blank_lines
    for position, number, line in iter_lines(file, start, options.max_record_bytes):
        if isinstance(line, LongLine):
            yield Record(position, number, None, TOO_LONG)
        elif keeps_blank or (line and not line.isspace()):
            yield _decode(position, number, line)


def _read_whole(file: InputFile, start: int, max_bytes: int) -> Iterator[Record]:
    if start > 0:
        return
    stream = ByteStream(file)
    blocks: list[bytes] = []
    num_bytes = 0
    while block := stream.read():
        num_bytes += len(block)
        blocks.append(block)
        if num_bytes > max_bytes:
            blocks.clear()  # read the file to the end, because it may be damaged
    if num_bytes > max_bytes:
        yield Record(0, 1, None, TOO_LONG)
    elif content := b"".join(blocks).removeprefix(BYTE_ORDER_MARK):
        yield _decode(0, 1, content)


def _read_paragraphs(file: InputFile, start: int, max_bytes: int) -> Iterator[Record]:
    """Yield paragraphs. The remainder of one that starts before `start` belongs to the previous part and is skipped."""
    scan_start = 0 if file.compression else start
    inside = scan_start > 0 and not _is_after_blank_line(file, start)
    paragraph = _Paragraph(max_bytes)
    for position, number, line in iter_lines(file, scan_start, max_bytes):
        if _is_blank(line):
            yield from paragraph.finish(start)
            inside = False
        elif not inside:
            paragraph.add(position, number, line)
    yield from paragraph.finish(start)


class _Paragraph:
    """Collects the lines of a paragraph, unless the paragraph is too long."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._first: tuple[int, int | None] | None = None
        """Position and number of the first line."""
        self._lines: list[bytes] = []
        self._num_bytes = 0

    def add(self, position: int, number: int | None, line: bytes | LongLine) -> None:
        self._first = self._first or (position, number)
        self._num_bytes += self._max_bytes + 2 if isinstance(line, LongLine) else len(line) + 1
        if self._is_too_long():
            self._lines.clear()
        elif isinstance(line, bytes):
            self._lines.append(line)

    def finish(self, start: int) -> Iterator[Record]:
        """Yield the paragraph as one record if it starts at `start` or later, and begin a new, empty one."""
        if self._first is not None and self._first[0] >= start:
            if self._is_too_long():
                yield Record(*self._first, None, TOO_LONG)
            else:
                yield _decode(*self._first, b"\n".join(self._lines))
        self._first, self._lines, self._num_bytes = None, [], 0

    def _is_too_long(self) -> bool:
        return self._num_bytes - 1 > self._max_bytes  # no line feed after the last line


def _is_after_blank_line(file: InputFile, start: int) -> bool:
    """Return whether the first line at `start` or later follows a blank line."""
    first = next(iter_lines(file, start, _LOOK_BACK_BYTES), None)
    if first is None:
        return False
    end = first[0] - 1
    with open_regular(file.path) as stream:
        while True:
            begin = max(end - _LOOK_BACK_BYTES, 0)
            stream.seek(begin)
            _, separator, line = stream.read(end - begin).rpartition(b"\n")
            if line.strip():
                return False
            if separator or begin == 0:
                return True
            end = begin


def _is_blank(line: bytes | LongLine) -> bool:
    return isinstance(line, bytes) and (not line or line.isspace())


def _decode(position: int, line: int | None, content: bytes) -> Record:
    try:
        return Record(position, line, {COLUMN: content.decode("utf-8")})
    except UnicodeDecodeError:
        return Record(position, line, None, INVALID_UTF8)
