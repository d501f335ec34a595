"""Plain text: a record is a line, a paragraph between blank lines, or the whole file."""

from __future__ import annotations

from collections.abc import Iterator

from ascend_cpt.data.readers.formats.base import INVALID_UTF8, Extent, ReadOptions, Record, iter_lines, measure_bytes
from ascend_cpt.data.readers.formats.byte_stream import BYTE_ORDER_MARK, ByteStream
from ascend_cpt.data.readers.input_files import InputFile

COLUMN = "text"
"""Name of the only column of a text file."""

_LOOK_BACK_BYTES = 4096


def measure(file: InputFile) -> list[Extent]:
    """See `formats.Reader`."""
    return measure_bytes(file)


def must_skim(file: InputFile) -> bool:
    """See `formats.Reader`."""
    return bool(file.compression)


def read(file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
    """See `formats.Reader`."""
    if options.txt_documents == "file":
        return _read_whole(file, start)
    if options.txt_documents == "blank-line":
        return _read_paragraphs(file, start)
    assert options.txt_documents == "line"
    return _read_lines(file, start, options.keep_blank_lines)


def _read_lines(file: InputFile, start: int, keep_blank: bool) -> Iterator[Record]:
    for position, number, line in iter_lines(file, start):
        if keep_blank or (line and not line.isspace()):
            yield _decode(position, number, line)


def _read_whole(file: InputFile, start: int) -> Iterator[Record]:
    if start == 0:
        stream = ByteStream(file)
        content = b"".join(iter(stream.read, b"")).removeprefix(BYTE_ORDER_MARK)
        if content:
            yield _decode(0, 1, content)


def _read_paragraphs(file: InputFile, start: int) -> Iterator[Record]:
    """Yield paragraphs. One that starts before `start` belongs to the previous part, so its rest is skipped."""
    scan_start = 0 if file.compression else start
    inside = scan_start > 0 and not _is_after_blank_line(file, start)
    paragraph: list[tuple[int, int | None, bytes]] = []
    for line in iter_lines(file, scan_start):
        if not line[2] or line[2].isspace():
            yield from _join(paragraph, start)
            paragraph, inside = [], False
        elif not inside:
            paragraph.append(line)
    yield from _join(paragraph, start)


def _join(lines: list[tuple[int, int | None, bytes]], start: int) -> Iterator[Record]:
    """Yield the lines as one record if the first one is at `start` or later."""
    if lines and lines[0][0] >= start:
        yield _decode(lines[0][0], lines[0][1], b"\n".join(line for _, _, line in lines))


def _is_after_blank_line(file: InputFile, start: int) -> bool:
    """Return whether the first line at `start` or later follows a blank line."""
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
