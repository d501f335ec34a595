"""File locks. On a file system without locks, a warning is printed and the program continues without them."""

from __future__ import annotations

import errno
import fcntl
import sys
from collections.abc import Callable
from pathlib import Path

_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


def try_lock(descriptor: int) -> bool:
    """Lock an open file exclusively (flock) and return True; False if another process holds the lock.

    The lock is released when all descriptors of this open file description are closed.

    Raises:
        OSError: for example on a file system without locks.
    """
    return _is_taken(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))


def take_lock(descriptor: int, path: Path, *, risk: str) -> bool:
    """Lock like `try_lock`. On a file system without locks, print a warning that names `risk`, and return True."""
    return _warn_without_locks(lambda: try_lock(descriptor), path, risk)


def take_range_lock(descriptor: int, path: Path, first: int, length: int, *, risk: str) -> bool:
    """Lock `length` bytes starting at `first` (0: all that follow), like `take_lock`.

    The lock is released when any descriptor of the file is closed in this process.
    """
    options = fcntl.LOCK_EX | fcntl.LOCK_NB
    return _warn_without_locks(lambda: _is_taken(lambda: fcntl.lockf(descriptor, options, length, first)), path, risk)


def _is_taken(lock: Callable[[], None]) -> bool:
    try:
        lock()
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _warn_without_locks(lock: Callable[[], bool], path: Path, risk: str) -> bool:
    try:
        return lock()
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        print(
            f"warning: {path}: its file system does not support locks ({error.strerror}), so the program continues "
            f"without a lock: {risk}. To enable locks, mount Lustre with -o flock (localflock: on this node only), "
            "and NFS with its lock service running, or with -o nolock (on this node only)",
            file=sys.stderr,
            flush=True,
        )
        return True
