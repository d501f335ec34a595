"""Reads the bytes of a text file, decompressing .gz and .zst, and maps them to positions in the file."""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Iterator
from typing import Any

from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.data.readers.regular_files import open_regular
from ascend_cpt.errors import DataError
from ascend_cpt.terminal_text import one_line

BLOCK_BYTES = 4 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# Determines where compressed input is split into shards, so it must not change.
_FEED_BYTES = 16 << 10
# A zstd block of 4 bytes can expand to 128 KiB, so that one call returns at most 32 MiB. (gzip: 17 MiB per chunk.)
_ZSTD_FEED_BYTES = 1 << 10
_ZSTD_WINDOW_BYTES = 1 << 28
_KEPT_CHUNKS = 1 << 10
"""Number of passed chunks after which they are forgotten."""


class ByteStream:
    """A file's bytes from `start` on, in blocks.

    A position is a byte offset in the file on disk. A compressed file can only be read from its beginning, so `start`
    must be 0, and all text decompressed from one chunk has the chunk's position.
    """

    def __init__(self, file: InputFile, start: int = 0) -> None:
        assert start == 0 or not file.compression
        self._file = file
        self._start = start
        self._blocks = self._read_compressed() if file.compression else self._read_plain()
        # For compressed files: each chunk's text offset and file position.
        self._offsets: list[int] = []
        self._positions: list[int] = []

    def read(self) -> bytes:
        """Return the next block, which is empty at the end of the file. Raise DataError if the file is damaged."""
        return next(self._blocks, b"")

    def locate(self, offset: int) -> int:
        """Return the file position of the byte at `offset` in the text. Offsets must not decrease between calls."""
        if not self._file.compression:
            return offset
        k = bisect.bisect_right(self._offsets, offset) - 1
        if k >= _KEPT_CHUNKS:
            del self._offsets[:k], self._positions[:k]
            k = 0
        return self._positions[k]

    def _read_plain(self) -> Iterator[bytes]:
        with open_regular(self._file.path, buffering=0) as stream:
            stream.seek(self._start)
            while block := stream.read(BLOCK_BYTES):
                yield block

    def _read_compressed(self) -> Iterator[bytes]:
        """Decompress chunk by chunk into blocks of bounded size."""
        offset = position = 0
        decompressor: Any = None
        feed_bytes = _ZSTD_FEED_BYTES if self._file.compression == "zst" else _FEED_BYTES
        with open_regular(self._file.path) as stream:
            while chunk := stream.read(_FEED_BYTES):
                is_located = False
                for begin in range(0, len(chunk), feed_bytes):
                    text, decompressor = self._decompress(decompressor, chunk[begin : begin + feed_bytes])
                    if text and not is_located:
                        self._offsets.append(offset)
                        self._positions.append(position)
                        is_located = True
                    offset += len(text)
                    for cut in range(0, len(text), BLOCK_BYTES):
                        yield text[cut : cut + BLOCK_BYTES]
                position += len(chunk)
        if decompressor is not None:
            raise DataError(f"{self._file.path}: the compressed file is truncated; copy it again")

    def _decompress(self, decompressor: Any, data: bytes) -> tuple[bytes, Any]:
        """Return the decompressed data and the decompressor to continue with, or None at the end of a member.

        A file may have several members (gzip) or frames (zstd), with zeros between or after them.
        """
        parts = []
        try:
            while data:
                if decompressor is None:
                    if not data.strip(b"\0"):
                        break
                    decompressor = _make_decompressor(self._file.compression)
                parts.append(decompressor.decompress(data))
                data = decompressor.unused_data
                if decompressor.eof:
                    decompressor = None
        except Exception as error:  # each library has its own exception
            hint = (
                f" (a window above {_ZSTD_WINDOW_BYTES >> 20} MiB is not supported; compress it without --long)"
                if "too much memory" in str(error)
                else ""
            )
            raise DataError(f"{self._file.path}: cannot be decompressed: {one_line(error)}{hint}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts), decompressor


def read_head(file: InputFile) -> bytes:
    """Return the first bytes of the text, without a byte order mark."""
    return ByteStream(file).read()[:4096].removeprefix(BYTE_ORDER_MARK)


def _make_decompressor(compression: str) -> Any:
    if compression == "gz":
        return zlib.decompressobj(wbits=31)
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
