"""Code shared by the readers: records, extents and lines of a byte stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ascend_cpt.data.readers.formats.byte_stream import BYTE_ORDER_MARK, ByteStream
from ascend_cpt.data.readers.input_files import InputFile

MALFORMED = "malformed"
INVALID_UTF8 = "invalid_utf8"
TOO_LONG = "too_long"

DEFAULT_MAX_RECORD_BYTES = 16 << 20
"""With longer records a worker could need more than 1 GB: gigatoken needs up to 25 bytes per byte of a long word."""

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
    """Kind of the problem: MALFORMED, INVALID_UTF8 or TOO_LONG."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """A part of a file whose positions have about equal weight."""

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
    max_record_bytes: int = DEFAULT_MAX_RECORD_BYTES
    """A longer record is skipped without loading it, and yielded as TOO_LONG."""


def measure_bytes(file: InputFile) -> list[Extent]:
    """Return the extents of a file whose positions are byte offsets."""
    weight = file.size_bytes * (_USUAL_RATIO if file.compression else 1)
    return [Extent(num_positions=file.size_bytes, weight=weight)]


@dataclass(frozen=True, kw_only=True)
class LongLine:
    """Stands for the content of an overlong line and has the line's `len`."""

    num_bytes: int
    num_quotes: int
    """Number of its double quotes."""

    def __len__(self) -> int:
        return self.num_bytes

    # Called by `_clean`, where a type check would take a fifth of the time per line.
    def removeprefix(self, prefix: bytes) -> LongLine:
        return self

    def endswith(self, suffix: bytes) -> bool:
        return False


def iter_lines(file: InputFile, start: int, max_bytes: int) -> Iterator[tuple[int, int | None, bytes | LongLine]]:
    """Yield (position, line number, content without line end) of the lines starting at `start` or later.

    A carriage return before the line feed and a byte order mark at the start of the file are removed. Line numbers
    start at 1, or are None unless reading starts at the beginning of the file. Lines longer than `max_bytes` are not
    kept in memory.
    """
    # A line belongs here if it starts at `start` or later, so the preceding line feed is at start - 1 or later.
    offset = 0 if file.compression else max(start - 1, 0)
    is_numbered = offset == 0
    number = 0
    stream = ByteStream(file, offset)
    unfinished = _UnfinishedLine(max_bytes)
    while block := stream.read():
        lines: list[bytes | LongLine] = block.split(b"\n")  # type: ignore[assignment]
        last = lines.pop()
        assert isinstance(last, bytes)
        if lines:
            if len(block) > max_bytes:
                lines = [line if len(line) <= max_bytes else _shorten(line) for line in lines]
            if unfinished.num_bytes:
                lines[0] = unfinished.finish(lines[0])
        for line in lines:
            number += 1
            position = stream.locate(offset)
            if position >= start:
                yield position, number if is_numbered else None, _clean(line, offset)
            offset += len(line) + 1
        unfinished.add(last)
    rest = unfinished.finish(b"")
    if rest and (position := stream.locate(offset)) >= start:
        yield position, number + 1 if is_numbered else None, _clean(rest, offset)


class _UnfinishedLine:
    """The beginning of a line that continues in the next block. Once it is too long, only its quotes are counted."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._clear()

    def _clear(self) -> None:
        self.num_bytes = 0
        self._parts: list[bytes | LongLine] = []
        self._num_quotes = 0

    def add(self, part: bytes | LongLine) -> None:
        if not part:
            return
        self.num_bytes += len(part)
        self._parts.append(part)
        if self.num_bytes > self._max_bytes:
            self._num_quotes += sum(_shorten(dropped).num_quotes for dropped in self._parts)
            self._parts = []

    def finish(self, end: bytes | LongLine) -> bytes | LongLine:
        """Add the end of the line, return the line, and start a new, empty one."""
        self.add(end)
        if self.num_bytes > self._max_bytes:
            line: bytes | LongLine = LongLine(num_bytes=self.num_bytes, num_quotes=self._num_quotes)
        else:
            line = b"".join(part for part in self._parts if isinstance(part, bytes))
        self._clear()
        return line


def _shorten(line: bytes | LongLine) -> LongLine:
    if isinstance(line, LongLine):
        return line
    return LongLine(num_bytes=len(line), num_quotes=line.count(b'"'))


def _clean(line: bytes | LongLine, offset: int) -> bytes | LongLine:
    if offset == 0:
        line = line.removeprefix(BYTE_ORDER_MARK)
    return line[:-1] if line.endswith(b"\r") else line  # type: ignore[index]
