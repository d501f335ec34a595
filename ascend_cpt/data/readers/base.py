"""What the readers share: records, extents and lines of a byte stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ascend_cpt.data.inputs import InputFile

BLOCK_BYTES = 4 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

MALFORMED = "malformed"
INVALID_UTF8 = "invalid_utf8"


class Record(NamedTuple):
    """One input record, or why it is none."""

    position: int
    """Where it begins: byte or row, in its file."""
    line: int | None
    """Its line (from 1), or row for formats without lines; None when the reader did not start at the file's head."""
    row: Mapping[str, Any] | None
    """Column or key to value; None for a bad record."""
    problem: str = ""
    """Kind of the badness."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """A stretch of a file whose positions weigh about the same."""

    num_positions: int
    weight: int
    """About its size in bytes."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a reader is told."""

    columns: tuple[str, ...] | None
    """The columns that are needed, None for all of them."""
    txt_documents: str = "line"
    """How .txt files are cut into documents: `line`, `blank-line` or `file`."""


def measure_bytes(file: InputFile) -> list[Extent]:
    """The extent of a file whose positions are bytes."""
    return [Extent(num_positions=file.size_bytes, weight=file.size_bytes)]


def iter_lines(file: InputFile, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield (byte offset, line without its end) for the lines that begin at `start` or later.

    A line ends at a line feed; a carriage return before it goes too, and so does a byte order mark at the file's head.
    """
    with open(file.path, "rb", buffering=0) as stream:
        # A line that begins exactly at `start` follows a line feed at start - 1; any other one there is not ours.
        position = max(start - 1, 0)
        stream.seek(position)
        parts: list[bytes] = []
        while block := stream.read(BLOCK_BYTES):
            lines = block.split(b"\n")
            if len(lines) == 1:
                parts.append(block)
                continue
            parts.append(lines[0])
            lines[0] = b"".join(parts)
            parts = [lines.pop()]
            for line in lines:
                if position >= start:
                    yield position, _clean(line) if position else _clean(line.removeprefix(BYTE_ORDER_MARK))
                position += len(line) + 1
        last = b"".join(parts)
        if last and position >= start:
            yield position, _clean(last) if position else _clean(last.removeprefix(BYTE_ORDER_MARK))


def _clean(line: bytes) -> bytes:
    return line[:-1] if line.endswith(b"\r") else line
