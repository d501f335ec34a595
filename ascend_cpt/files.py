"""Atomic file writes: a reader sees the old or the new content, never partial content."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# The user's umask, read at import because MindSpore changes it when it creates a folder.
_UMASK = os.umask(0o022)
os.umask(_UMASK)


def sync_file(path: Path) -> None:
    """Flush a file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` to write to; it replaces `path` on success.

    After an error `path` is unchanged and the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        sync_file(temporary)
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Write `text`, or its parts, to `path` in UTF-8, atomically."""
    with write_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines((text,) if isinstance(text, str) else text)
