"""Atomic writes of files and folders: a reader sees either the old or the new content, never partial content.

When a function returns, its output is on disk: the data is flushed before the rename, and the folder after it.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ascend_cpt.locks import try_lock

# The user's umask, read at import because MindSpore changes it when it creates a folder.
_UMASK = os.umask(0o022)
os.umask(_UMASK)

# File systems that cannot flush a folder either write its entries at once or give no guarantee.
_CANNOT_SYNC_FOLDER = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


def sync_file(path: Path) -> None:
    """Flush a file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder to disk, so that new and renamed files in it survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FOLDER:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` to write to. On success, it replaces `path`.

    After an error, `path` is unchanged and the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        sync_file(temporary)
        temporary.chmod(0o666 & ~_UMASK)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Write `text`, or its parts, to `path` in UTF-8, atomically."""
    with write_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines((text,) if isinstance(text, str) else text)


@contextmanager
def write_folder_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path` to write files to. On success, it is renamed to `path`.

    After an error, `path` does not exist and the temporary folder is removed. Folders left by killed processes are
    removed too.

    Raises:
        OSError: `path` exists and is not an empty folder, or cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # on a file system without locks, the folder is not recognized as in use
            try_lock(descriptor)
        yield temporary
        for file in sorted(temporary.iterdir()):
            sync_file(file)
        sync_folder(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(path: Path) -> None:
    """Remove temporary folders for `path` that no process holds."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.tmp"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            with suppress(OSError):  # the file system has no locks
                if try_lock(descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)
