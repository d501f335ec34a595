"""Read the bytes of a text file, decompressing .gz and .zst, and map them to positions in the file."""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Iterator
from typing import Any

from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.errors import DataError

BLOCK_BYTES = 4 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# Determines where compressed input is split into shards, so it must not change.
_FEED_BYTES = 16 << 10
_ZSTD_WINDOW_BYTES = 1 << 31


class ByteStream:
    """Blocks of the bytes of a file from `start` on.

    A position is a byte offset in the file on disk. A compressed file can only be read from its start, so `start` must
    be 0; all text decompressed from one chunk has the position of the chunk.
    """

    def __init__(self, file: InputFile, start: int = 0) -> None:
        assert start == 0 or not file.compression
        self._file = file
        self._start = start
        self._blocks = self._read_compressed() if file.compression else self._read_plain()
        # For compressed files: text offset and file position of each chunk.
        self._offsets: list[int] = []
        self._positions: list[int] = []

    def read(self) -> bytes:
        """Return the next block, empty at the end of the file; raise DataError if the file is damaged."""
        return next(self._blocks, b"")

    def locate(self, offset: int) -> int:
        """Return the file position of the byte at `offset` in the text."""
        if not self._file.compression:
            return offset
        return self._positions[bisect.bisect_right(self._offsets, offset) - 1]

    def _read_plain(self) -> Iterator[bytes]:
        with open(self._file.path, "rb", buffering=0) as stream:
            stream.seek(self._start)
            while block := stream.read(BLOCK_BYTES):
                yield block

    def _read_compressed(self) -> Iterator[bytes]:
        """Decompress chunk by chunk; a file may have several members (gzip) or frames (zstd)."""
        offset = position = 0
        decompressor: Any = None
        with open(self._file.path, "rb") as stream:
            while chunk := stream.read(_FEED_BYTES):
                parts = []
                while chunk:
                    if decompressor is None:
                        if not chunk.strip(b"\0"):
                            break  # padding between or after members
                        decompressor = _make_decompressor(self._file.compression)
                    parts.append(self._decompress(decompressor, chunk))
                    chunk = decompressor.unused_data
                    if decompressor.eof:
                        decompressor = None
                block = b"".join(parts)
                if block:
                    self._offsets.append(offset)
                    self._positions.append(position)
                    offset += len(block)
                    yield block
                position = stream.tell()
        if decompressor is not None:
            raise DataError(f"{self._file.path}: the compressed file is truncated; copy it again")

    def _decompress(self, decompressor: Any, chunk: bytes) -> bytes:
        try:
            return bytes(decompressor.decompress(chunk))
        except Exception as error:  # each library has its own exception
            raise DataError(f"{self._file.path}: cannot be decompressed: {error}") from error


def read_head(file: InputFile) -> bytes:
    """Return the first bytes of the text, without a byte order mark."""
    return ByteStream(file).read()[:4096].removeprefix(BYTE_ORDER_MARK)


def _make_decompressor(compression: str) -> Any:
    if compression == "gz":
        return zlib.decompressobj(wbits=31)
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
