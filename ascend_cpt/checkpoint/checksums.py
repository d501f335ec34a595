"""Checksums of checkpoint files. They are fast enough for whole checkpoints and detect damage, but not forgery."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import xxhash

PREFIX = "xxh3-128:"
_BLOCK_BYTES = 4 << 20


def checksum_file(path: Path) -> str:
    """Return the checksum of a file's content, with the name of its algorithm.

    Raises:
        OSError: the file cannot be read.
    """
    digest = xxhash.xxh3_128()
    block = memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while num_bytes := file.readinto(block):
            digest.update(block[:num_bytes])
    return f"{PREFIX}{digest.hexdigest()}"


def checksum_bytes(content: bytes) -> str:
    """Return the checksum of in-memory bytes; see `checksum_file`."""
    return f"{PREFIX}{xxhash.xxh3_128(content).hexdigest()}"


def checksum_to_words(checksum: str) -> list[int]:
    """Return a checksum as eight 16-bit numbers."""
    digits = checksum.removeprefix(PREFIX)
    return [int(digits[at : at + 4], 16) for at in range(0, 32, 4)]


def checksum_from_words(words: Sequence[int]) -> str:
    """Return the checksum that `checksum_to_words` converted to numbers."""
    return PREFIX + "".join(f"{word:04x}" for word in words)
