"""Common parts of the readers: records, extents and lines of a byte stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ascend_cpt.data.readers.formats.byte_stream import BYTE_ORDER_MARK, ByteStream
from ascend_cpt.data.readers.input_files import InputFile

MALFORMED = "malformed"
INVALID_UTF8 = "invalid_utf8"

_USUAL_RATIO = 4
"""Assumed compression ratio."""


class Record(NamedTuple):
    """One input record, or the problem with it."""

    position: int
    """Byte offset or row number of its start in the file."""
    line: int | None
    """Line from 1, or row for formats without lines; None if the reader did not start at the start of the file."""
    row: Mapping[str, Any] | None
    """Column or key → value; None for a bad record."""
    problem: str = ""
    """Kind of the problem: MALFORMED or INVALID_UTF8."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """A part of a file with positions of about equal weight."""

    num_positions: int
    weight: int
    """Approximate size in bytes."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Options of a reader."""

    columns: tuple[str, ...] | None
    """Columns to read, None for all."""
    txt_documents: str = "line"
    """How .txt files are split into records: `line`, `blank-line` or `file`."""
    keep_blank_lines: bool = False
    """Whether a blank line of a .txt file is a record, for handlers that join lines."""


def measure_bytes(file: InputFile) -> list[Extent]:
    """Return the extents of a file whose positions are byte offsets."""
    weight = file.size_bytes * (_USUAL_RATIO if file.compression else 1)
    return [Extent(num_positions=file.size_bytes, weight=weight)]


def iter_lines(file: InputFile, start: int) -> Iterator[tuple[int, int | None, bytes]]:
    """Yield (position, line number, content without line end) of the lines starting at `start` or later.

    A carriage return before the line feed and a byte order mark at the start of the file are removed. Line numbers
    start at 1; they are None unless reading starts at the start of the file.
    """
    # A line belongs here if it starts at `start` or later, so the line feed before it is at start - 1 or later.
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
