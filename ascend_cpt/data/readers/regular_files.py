"""Finds and opens regular files. Folders may contain link loops, and files that block or never end (devices)."""

from __future__ import annotations

import glob
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ascend_cpt.errors import DataError

logger = logging.getLogger(__name__)

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: str | Path, *, buffering: int = -1) -> BinaryIO:
    """Open a regular file for binary reading, like `open`.

    Raises:
        DataError: the file cannot be read or is not a regular file.
    """
    try:
        check_regular(path, os.stat(path))
        # O_NONBLOCK: opening a pipe that has since replaced the file would block.
        file = open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=buffering)  # noqa: SIM115
        check_regular(path, os.fstat(file.fileno()))
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return file


def check_regular(path: str | Path, status: os.stat_result) -> None:
    """Raise DataError if the status does not describe a regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: {_KINDS.get(stat.S_IFMT(status.st_mode), 'special')}, not a regular file")


def walk(folder: Path) -> list[Path]:
    """Return the non-hidden regular files in `folder` and its subfolders, sorted by path.

    Links are followed. A folder reachable by several paths is searched once, under the first path.
    """
    found = [
        Path(parent, name) for parent, names in _walk_folders(folder) for name in names if not name.startswith(".")
    ]
    return sorted(found)


def expand(pattern: str) -> list[str]:
    """Return the sorted paths that match a glob. `**` matches any number of folders, each only once."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        return sorted(glob.glob(pattern))
    k = parts.index("**")
    roots = glob.glob(os.path.join(os.sep.join(parts[:k]), "")) if k else [""]
    if not any(parts[k + 1 :]):
        return sorted(root or os.curdir for root in roots)
    found: set[str] = set()
    for root in roots:
        for folder, _ in _walk_folders(Path(root)):
            prefix = "" if folder == os.curdir else glob.escape(folder)
            found.update(expand(os.path.join(prefix, *parts[k + 1 :])))
    return sorted(found, key=os.path.normpath)  # in the working directory, some paths begin with ./


def skip_special(path: str | Path, status: os.stat_result) -> bool:
    """Return whether to skip a file found in a folder because it is not regular, and log a warning if so."""
    try:
        check_regular(path, status)
    except DataError as error:
        logger.warning("%s; skipped", error)
        return True
    return False


def _walk_folders(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder, by device and inode, with its file names. Hidden folders are skipped."""
    visited: set[tuple[int, int]] = set()
    for parent, subfolders, names in os.walk(root, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield parent, names
