"""JSON: one object per line, or one array of objects, distinguished by the first character of the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from ascend_cpt.data.readers.formats.base import (
    INVALID_UTF8,
    MALFORMED,
    Extent,
    ReadOptions,
    Record,
    iter_lines,
    measure_bytes,
)
from ascend_cpt.data.readers.formats.byte_stream import ByteStream, read_head
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.errors import DataError

# A string (without closing quote if the buffer ends inside it), a bracket or a comma.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{},]', re.DOTALL)


def measure(file: InputFile) -> list[Extent]:
    """See `formats.Reader`."""
    return measure_bytes(file)


def read(file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
    """See `formats.Reader`."""
    return _read_array(file, start) if _is_array(file) else _read_lines(file, start)


def must_skim(file: InputFile) -> bool:
    """See `formats.Reader`."""
    return bool(file.compression) or _is_array(file)


def _is_array(file: InputFile) -> bool:
    return read_head(file).lstrip().startswith(b"[")


def _read_lines(file: InputFile, start: int) -> Iterator[Record]:
    for position, number, line in iter_lines(file, start):
        if line and not line.isspace():
            yield _parse(position, number, line)


def _read_array(file: InputFile, start: int) -> Iterator[Record]:
    """Yield the elements of an array from `start` on. The array is always scanned from its start."""
    for position, line, element in _ArrayScanner(file).iter_elements():
        if position >= start:
            yield _parse(position, line, element)


def _parse(position: int, line: int | None, content: bytes) -> Record:
    try:
        row = orjson.loads(content)
    except orjson.JSONDecodeError:
        row, problem = _parse_leniently(content)
        if problem:
            return Record(position, line, None, problem)
    if not isinstance(row, dict):
        return Record(position, line, None, MALFORMED)
    return Record(position, line, row)


def _parse_leniently(content: bytes) -> tuple[Any, str]:
    """Parse JSON that orjson rejects but Python writes (NaN, big integers); return (row, problem)."""
    try:
        return json.loads(content.decode("utf-8")), ""
    except UnicodeDecodeError:
        return None, INVALID_UTF8
    except (ValueError, RecursionError):
        return None, MALFORMED


class _ArrayScanner:
    """Splits the bytes of a JSON array at commas of depth one, without parsing the elements."""

    def __init__(self, file: InputFile) -> None:
        self._path = file.path
        self._stream = ByteStream(file)
        self._buffer = b""
        self._offset = 0
        """Byte offset of the buffer in the text."""
        self._line = 1
        """Line number of the first byte of the buffer."""

    def iter_elements(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (position, line, content) of each element, with one element and one block in memory."""
        self._fill()
        begin = self._buffer.index(b"[") + 1
        scan, depth = begin, 1
        while True:
            token = _TOKEN.search(self._buffer, scan)
            if token is None or (token.group().startswith(b'"') and not token.group(1)):
                # End of the buffer, possibly inside a string: read more and continue from there.
                scan = (len(self._buffer) if token is None else token.start()) - begin
                self._drop(begin)
                begin = 0
                if not self._fill():
                    yield from self._cut(0, len(self._buffer))  # the array is not closed
                    return
                continue
            scan = token.end()
            character = token.group()
            if character in (b"[", b"{"):
                depth += 1
            elif character in (b"]", b"}"):
                depth -= 1
            if depth == 0 or (depth == 1 and character == b","):
                yield from self._cut(begin, token.start())
                begin = scan
            if depth == 0:
                self._drop(begin)
                self._check_rest()
                return

    def _cut(self, begin: int, end: int) -> Iterator[tuple[int, int, bytes]]:
        content = self._buffer[begin:end]
        stripped = content.lstrip()
        if stripped:
            begin += len(content) - len(stripped)
            yield (
                self._stream.locate(self._offset + begin),
                self._line + self._buffer.count(b"\n", 0, begin),
                stripped.rstrip(),
            )

    def _check_rest(self) -> None:
        """Raise DataError for text after the array."""
        while True:
            if rest := self._buffer.lstrip():
                line = self._line + self._buffer.count(b"\n", 0, len(self._buffer) - len(rest))
                raise DataError(
                    f"{self._path}:{line}: text after the end of the JSON array; "
                    "check the preceding brackets, or split the file if it contains several arrays"
                )
            self._drop(len(self._buffer))
            if not self._fill():
                return

    def _drop(self, length: int) -> None:
        self._line += self._buffer.count(b"\n", 0, length)
        self._offset += length
        self._buffer = self._buffer[length:]

    def _fill(self) -> bool:
        """Double the buffer, so that long elements are scanned only a few times."""
        blocks: list[bytes] = []
        wanted = max(1, len(self._buffer))
        while wanted > 0 and (block := self._stream.read()):
            blocks.append(block)
            wanted -= len(block)
        self._buffer = b"".join((self._buffer, *blocks))
        return bool(blocks)
