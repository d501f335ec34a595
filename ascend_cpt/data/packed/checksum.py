"""Checksums that are the same for sparse and non-sparse copies of a file."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

_PAGE_BYTES = 4096
_READ_BYTES = 4 << 20
_ZERO_PAGE = bytes(_PAGE_BYTES)


def checksum_file(path: Path) -> str:
    """Return a SHA-256 of the file size and the nonzero 4 KiB pages with their page numbers.

    MindRecord files are sparse (an apparent size of 50 MB with a few MB of data). Skipping zero pages is fast and gives
    the same checksum for a copy in which the holes are filled with zeros.
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
    """Return the offset of the first page with data at or after `offset`, or the file size if there is none."""
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
