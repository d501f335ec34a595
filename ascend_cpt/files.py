"""Files that are written whole: a reader sees the old content or the new, never a part."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# The user's: MindSpore sets one of its own when it makes a folder.
_UMASK = os.umask(0o022)
os.umask(_UMASK)


def sync_file(path: Path) -> None:
    """Return when what was written to a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; that file takes the place of `path` at the end.

    After an error `path` is what it was before, and the temporary file is gone.
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
    """Write `text`, or its parts, to `path` in UTF-8, whole or not at all."""
    with write_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines((text,) if isinstance(text, str) else text)
