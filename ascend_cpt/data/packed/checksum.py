"""Checksums of files that may be sparse."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

_PAGE_BYTES = 4096
_READ_BYTES = 4 << 20
_ZERO_PAGE = bytes(_PAGE_BYTES)


def checksum_file(path: Path) -> str:
    """SHA-256 over the 4 KiB pages of a file that are not all zero, each with its number, and over the size.

    MindRecord files are sparse (a few MB of data, 50 MB apparent): leaving the zero pages out costs little, and the
    result is the same for a sparse file and for its copy with the holes filled in.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        offset = _find_data(file.fileno(), 0, size_bytes)
        while block := os.pread(file.fileno(), _READ_BYTES, offset):
            _add_pages(digest, block, offset // _PAGE_BYTES)
            offset = _find_data(file.fileno(), offset + len(block), size_bytes)
    digest.update(size_bytes.to_bytes(8, "little"))
    return digest.hexdigest()


def _find_data(descriptor: int, offset: int, size_bytes: int) -> int:
    """The page at or after `offset` before which the file has only a hole; the file's size when nothing follows."""
    try:
        data = os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size_bytes
        raise
    return data - data % _PAGE_BYTES


def _add_pages(digest: hashlib._Hash, block: bytes, first_page: int) -> None:
    for offset in range(0, len(block), _PAGE_BYTES):
        page = block[offset : offset + _PAGE_BYTES]
        if page != _ZERO_PAGE[: len(page)]:
            digest.update((first_page + offset // _PAGE_BYTES).to_bytes(8, "little"))
            digest.update(page)
