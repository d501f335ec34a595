"""What the readers share: records, extents and lines of a byte stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ascend_cpt.data.readers.formats.byte_stream import BYTE_ORDER_MARK, ByteStream
from ascend_cpt.data.readers.input_files import InputFile

MALFORMED = "malformed"
INVALID_UTF8 = "invalid_utf8"

_USUAL_RATIO = 4
"""Bytes of text in a compressed byte, about."""


class Record(NamedTuple):
    """One input record, or why it is none."""

    position: int
    """Where it begins: byte or row, in its file."""
    line: int | None
    """Its line (from 1), or row for formats without lines; None when the reader did not start at the file's head."""
    row: Mapping[str, Any] | None
    """Column or key to value; None for a bad record."""
    problem: str = ""
    """Why the record is rejected."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """A stretch of a file whose positions weigh about the same."""

    num_positions: int
    weight: int
    """About its size in bytes."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """The options of a reader."""

    columns: tuple[str, ...] | None
    """The columns that are needed, None for all of them."""
    txt_documents: str = "line"
    """How .txt files are cut into records: `line`, `blank-line` or `file`."""
    keep_blank_lines: bool = False
    """Whether a blank line of a .txt file is a record too, for a handler that joins lines."""


def measure_bytes(file: InputFile) -> list[Extent]:
    """The extent of a file whose positions are bytes."""
    weight = file.size_bytes * (_USUAL_RATIO if file.compression else 1)
    return [Extent(num_positions=file.size_bytes, weight=weight)]


def iter_lines(file: InputFile, start: int) -> Iterator[tuple[int, int | None, bytes]]:
    """Yield (position, number, line without its end) for the lines that begin at `start` or later.

    A line ends at a line feed; a carriage return before it goes too, and so does a byte order mark at the file's head.
    Numbers count from 1; they are None when the reading does not begin at the file's head.
    """
    # A line that begins exactly at `start` follows a line feed at start - 1; any other one there is not ours.
    offset = 0 if file.compression else max(start - 1, 0)
    is_numbered = offset == 0
    number = 0
    stream = ByteStream(file, offset)
    parts: list[bytes] = []
    while block := stream.read():
        lines = block.split(b"\n")
        parts.append(lines[0])
        if len(lines) == 1:
            continue
        lines[0] = b"".join(parts)
        parts = [lines.pop()]
        for line in lines:
            number += 1
            position = stream.locate(offset)
            if position >= start:
                yield position, number if is_numbered else None, _clean(line, offset)
            offset += len(line) + 1
    last = b"".join(parts)
    if last and (position := stream.locate(offset)) >= start:
        yield position, number + 1 if is_numbered else None, _clean(last, offset)


def _clean(line: bytes, offset: int) -> bytes:
    if offset == 0:
        line = line.removeprefix(BYTE_ORDER_MARK)
    return line[:-1] if line.endswith(b"\r") else line
