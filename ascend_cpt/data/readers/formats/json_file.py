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
    TOO_LONG,
    Extent,
    LongLine,
    ReadOptions,
    Record,
    iter_lines,
    measure_bytes,
)
from ascend_cpt.data.readers.formats.byte_stream import ByteStream, read_head
from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.errors import DataError

# A string, a bracket or a comma. A string without a closing quote is unfinished: the buffer ends inside it, or it has
# too many escape sequences, which are limited because the matcher needs memory for each.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*){0,4096}("?)|[\[\]{},]', re.DOTALL)
_REST_OF_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*){0,4096}("?)', re.DOTALL)

# Parsed values take more memory than their text: `[],` becomes an 80-byte object.
_ALWAYS_PARSED_BYTES = 1 << 20
_VALUE_BYTES = {b"[": 80, b"{": 240, b",": 64}
_MAX_VALUES_BYTES = 256 << 20


def measure(file: InputFile, options: ReadOptions) -> list[Extent]:
    """See `formats.Reader`."""
    return measure_bytes(file)


def read(file: InputFile, start: int, options: ReadOptions) -> Iterator[Record]:
    """See `formats.Reader`."""
    limit = options.max_record_bytes
    return _read_array(file, start, limit) if _is_array(file) else _read_lines(file, start, limit)


def must_skim(file: InputFile) -> bool:
    """See `formats.Reader`."""
    return bool(file.compression) or _is_array(file)


def _is_array(file: InputFile) -> bool:
    return read_head(file).lstrip().startswith(b"[")


def _read_lines(file: InputFile, start: int, max_bytes: int) -> Iterator[Record]:
    for position, number, line in iter_lines(file, start, max_bytes):
        if isinstance(line, LongLine):
            yield Record(position, number, None, TOO_LONG)
        elif line and not line.isspace():
            yield _parse(position, number, line)


def _read_array(file: InputFile, start: int, max_bytes: int) -> Iterator[Record]:
    """Yield the array elements from `start` on. The array is always scanned from its beginning."""
    for position, line, element in _ArrayScanner(file, max_bytes).iter_elements():
        if position >= start:
            yield Record(position, line, None, TOO_LONG) if element is None else _parse(position, line, element)


def _parse(position: int, line: int | None, content: bytes) -> Record:
    if len(content) > _ALWAYS_PARSED_BYTES and _has_too_many_values(content):
        return Record(position, line, None, TOO_LONG)
    try:
        row = orjson.loads(content)
    except orjson.JSONDecodeError:
        row, problem = _parse_leniently(content)
        if problem:
            return Record(position, line, None, problem)
    if not isinstance(row, dict):
        return Record(position, line, None, MALFORMED)
    return Record(position, line, row)


def _has_too_many_values(content: bytes) -> bool:
    """Return whether a record's values would take too much memory.

    Strings are excluded from the count only if the count with them is too high.
    """
    left = _MAX_VALUES_BYTES - sum(content.count(character) * cost for character, cost in _VALUE_BYTES.items())
    if left >= 0:
        return False
    left, scan, is_in_string = _MAX_VALUES_BYTES, 0, False
    while left >= 0 and (token := (_REST_OF_STRING if is_in_string else _TOKEN).search(content, scan)):
        if token.end() == scan:
            return False  # inside a string at the end: malformed
        is_in_string = token.group(1) == b""
        left -= _VALUE_BYTES.get(token.group(), 0)
        scan = token.end()
    return left < 0


def _parse_leniently(content: bytes) -> tuple[Any, str]:
    """Parse JSON that orjson rejects but Python can write (NaN, big integers). Return (row, problem)."""
    try:
        return json.loads(content.decode("utf-8")), ""
    except UnicodeDecodeError:
        return None, INVALID_UTF8
    except (ValueError, RecursionError):
        return None, MALFORMED


class _ArrayScanner:
    """Splits the bytes of a JSON array at commas of depth one, without parsing the elements."""

    def __init__(self, file: InputFile, max_bytes: int) -> None:
        self._path = file.path
        self._max_bytes = max_bytes
        self._stream = ByteStream(file)
        self._buffer = b""
        self._offset = 0
        """Byte offset of the buffer in the text."""
        self._line = 1
        """Line number of the first byte of the buffer."""
        self._begin = self._scan = 0
        """Where the current element begins in the buffer, and up to where it has been scanned."""
        self._is_in_string = False
        self._dropped: tuple[int, int] | None = None
        """Position and line of the current element if its beginning has been dropped because it is too long."""

    def iter_elements(self) -> Iterator[tuple[int, int, bytes | None]]:
        """Yield each element's (position, line, content). Content longer than the limit is given as None.

        At most one block and one element of up to twice the limit are in memory.
        """
        self._fill()
        self._begin = self._scan = self._buffer.index(b"[") + 1
        depth = 1
        while depth:
            character = self._find_next()
            if character is None:
                yield from self._cut(len(self._buffer))  # the array is not closed
                return
            if character in (b"[", b"{"):
                depth += 1
            elif character in (b"]", b"}"):
                depth -= 1
            if depth == 0 or (depth == 1 and character == b","):
                yield from self._cut(self._scan - 1)
                self._begin = self._scan
        self._drop(self._begin)
        self._check_rest()

    def _find_next(self) -> bytes | None:
        """Move past the next bracket or comma outside a string and return it, or None at the end of the text."""
        while True:
            token = (_REST_OF_STRING if self._is_in_string else _TOKEN).search(self._buffer, self._scan)
            if token is None or token.end() == self._scan:
                self._scan = len(self._buffer) if token is None else self._scan
                if self._scan - self._begin > self._max_bytes:
                    self._drop_beginning()
                self._drop(self._begin)
                if not self._fill():
                    return None
                continue
            self._scan = token.end()
            if self._is_in_string or token.group(1) is not None:
                self._is_in_string = not token.group(1)
            else:
                return token.group()

    def _drop_beginning(self) -> None:
        """Discard the scanned part of the current element, but remember where the element begins."""
        if self._dropped is None:
            self._dropped = self._locate_element(self._scan)
        self._begin = self._scan

    def _locate_element(self, end: int) -> tuple[int, int] | None:
        """Return the position and line of the first non-space character from `_begin` to `end`."""
        content = self._buffer[self._begin : end]
        if not (stripped := content.lstrip()):
            return None
        begin = self._begin + len(content) - len(stripped)
        return self._stream.locate(self._offset + begin), self._line + self._buffer.count(b"\n", 0, begin)

    def _cut(self, end: int) -> Iterator[tuple[int, int, bytes | None]]:
        """Yield the element from `_begin` to `end`, if there is one."""
        content: bytes | None = self._buffer[self._begin : end].strip()
        located = self._dropped or self._locate_element(end)
        if located is not None:
            if self._dropped is not None or len(content or b"") > self._max_bytes:
                content = None
            yield *located, content
        self._dropped = None

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
        self._begin -= length
        self._scan -= length
        self._buffer = self._buffer[length:]

    def _fill(self) -> bool:
        """Double the buffer size so that long elements are scanned only a few times."""
        blocks: list[bytes] = []
        wanted = max(1, len(self._buffer))
        while wanted > 0 and (block := self._stream.read()):
            blocks.append(block)
            wanted -= len(block)
        self._buffer = b"".join((self._buffer, *blocks))
        return bool(blocks)
