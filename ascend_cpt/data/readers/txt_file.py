"""Plain text: a document is a line, a stretch between blank lines, or the whole file."""

from __future__ import annotations

from collections.abc import Iterator

from ascend_cpt.data.inputs import InputFile
from ascend_cpt.data.readers.base import (
    BYTE_ORDER_MARK,
    INVALID_UTF8,
    Extent,
    ReadOptions,
    Record,
    iter_lines,
    measure_bytes,
)

COLUMN = "text"
"""The one column that a text file has."""

_LOOK_BACK_BYTES = 4096


def measure(file: InputFile) -> list[Extent]:
    """See `readers.Reader`."""
    return measure_bytes(file)


def read(file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
    """See `readers.Reader`."""
    if options.txt_documents == "file":
        return _read_whole(file, start)
    if options.txt_documents == "blank-line":
        return _read_paragraphs(file, start)
    assert options.txt_documents == "line"
    return _read_lines(file, start)


def _read_lines(file: InputFile, start: int) -> Iterator[Record]:
    for number, (position, line) in enumerate(iter_lines(file, start), 1):
        if line and not line.isspace():
            yield _decode(position, number if start == 0 else None, line)


def _read_whole(file: InputFile, start: int) -> Iterator[Record]:
    if start == 0 and file.size_bytes:
        with open(file.path, "rb") as stream:
            yield _decode(0, 1, stream.read().removeprefix(BYTE_ORDER_MARK))


def _read_paragraphs(file: InputFile, start: int) -> Iterator[Record]:
    """Lines joined until the next blank one. A stretch belongs where it begins, so its rest is passed over first."""
    begin, first_number = 0, 0
    lines: list[bytes] = []
    inside = start > 0 and not _is_after_blank_line(file, start)
    for number, (position, line) in enumerate(iter_lines(file, start), 1):
        if not line or line.isspace():
            if lines:
                yield _decode(begin, first_number if start == 0 else None, b"\n".join(lines))
            lines, inside = [], False
        elif not inside:
            if not lines:
                begin, first_number = position, number
            lines.append(line)
    if lines:
        yield _decode(begin, first_number if start == 0 else None, b"\n".join(lines))


def _is_after_blank_line(file: InputFile, start: int) -> bool:
    """Whether the first line that begins at `start` or later follows a blank one (or is the file's first)."""
    first = next(iter_lines(file, start), None)
    if first is None:
        return False
    end, look_back = first[0] - 1, _LOOK_BACK_BYTES
    with open(file.path, "rb") as stream:
        while True:
            begin = max(end - look_back, 0)
            stream.seek(begin)
            _, separator, line = stream.read(end - begin).rpartition(b"\n")
            if line.strip():
                return False
            if separator or begin == 0:
                return True
            look_back *= 2


def _decode(position: int, line: int | None, content: bytes) -> Record:
    try:
        return Record(position, line, {COLUMN: content.decode("utf-8")})
    except UnicodeDecodeError:
        return Record(position, line, None, INVALID_UTF8)
