"""Small operations on files that the data room shares: whole-or-not writes and checksums."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_PAGE_BYTES = 4096
_READ_BYTES = 4 << 20
_ZERO_PAGE = bytes(_PAGE_BYTES)


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` under a temporary name, then rename: readers see the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def checksum_file(path: Path) -> str:
    """SHA-256 over the 4 KiB pages of a file that are not all zero, each with its number, and over the size.

    MindRecord files are sparse (a few MB of data, 50 MB apparent): leaving the zero pages out costs little, and the
    result is the same for a sparse file and for its copy with the holes filled in.
    """
    digest = hashlib.sha256()
    page_number = 0
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            if block.count(0) != len(block):
                _add_pages(digest, block, page_number)
            page_number += len(block) // _PAGE_BYTES
        digest.update(file.tell().to_bytes(8, "little"))
    return digest.hexdigest()


def _add_pages(digest: hashlib._Hash, block: bytes, first_page: int) -> None:
    for offset in range(0, len(block), _PAGE_BYTES):
        page = block[offset : offset + _PAGE_BYTES]
        if page != _ZERO_PAGE[: len(page)]:
            digest.update((first_page + offset // _PAGE_BYTES).to_bytes(8, "little"))
            digest.update(page)
