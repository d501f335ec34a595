"""The bytes of a text file, decompressed where it is .gz or .zst, and the positions in the file that they came from."""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Iterator
from typing import Any

from ascend_cpt.data.readers.input_files import InputFile
from ascend_cpt.errors import DataError

BLOCK_BYTES = 4 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# Part of how compressed input is cut into shards: another size puts the cuts elsewhere.
_FEED_BYTES = 16 << 10
_ZSTD_WINDOW_BYTES = 1 << 31


class ByteStream:
    """Blocks of a file's bytes from `start` on.

    A position is a byte offset in the file on disk. A compressed file can only be read from its head, so `start` must
    be 0; what comes out of a piece of it has the piece's position.
    """

    def __init__(self, file: InputFile, start: int = 0) -> None:
        assert start == 0 or not file.compression
        self._file = file
        self._start = start
        self._blocks = self._read_compressed() if file.compression else self._read_plain()
        # Of compressed files: byte offsets in the text at which pieces begin, and the pieces' positions.
        self._offsets: list[int] = []
        self._positions: list[int] = []

    def read(self) -> bytes:
        """The next block, empty at the end; raises DataError where the file is damaged."""
        return next(self._blocks, b"")

    def locate(self, offset: int) -> int:
        """The position of the byte at `offset` of the text."""
        if not self._file.compression:
            return offset
        return self._positions[bisect.bisect_right(self._offsets, offset) - 1]

    def _read_plain(self) -> Iterator[bytes]:
        with open(self._file.path, "rb", buffering=0) as stream:
            stream.seek(self._start)
            while block := stream.read(BLOCK_BYTES):
                yield block

    def _read_compressed(self) -> Iterator[bytes]:
        """Decompress piece by piece; a file may hold several members or frames one after the other."""
        offset = position = 0
        decompressor: Any = None
        with open(self._file.path, "rb") as stream:
            while piece := stream.read(_FEED_BYTES):
                parts = []
                while piece:
                    if decompressor is None:
                        if not piece.strip(b"\0"):
                            break  # padding between or after members
                        decompressor = _make_decompressor(self._file.compression)
                    parts.append(self._decompress(decompressor, piece))
                    piece = decompressor.unused_data
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
            raise DataError(f"{self._file.path}: the compressed file is cut short; get it again")

    def _decompress(self, decompressor: Any, piece: bytes) -> bytes:
        try:
            return bytes(decompressor.decompress(piece))
        except Exception as error:  # each library has an error of its own
            raise DataError(f"{self._file.path}: cannot be decompressed: {error}") from error


def read_head(file: InputFile) -> bytes:
    """The first bytes of the text, without a byte order mark."""
    return ByteStream(file).read()[:4096].removeprefix(BYTE_ORDER_MARK)


def _make_decompressor(compression: str) -> Any:
    if compression == "gz":
        return zlib.decompressobj(wbits=31)
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
