"""A machine-local lock that prevents two launches with the same master address, port and node rank."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.errors import ClusterError
from ascend_cpt.locks import take_lock, try_lock

_RISK = "another launch on this machine with the same MASTER_PORT and NODE_RANK will not be detected"


@contextmanager
def hold_launch_lock(settings: LaunchSettings) -> Iterator[None]:
    """Hold this machine's lock on (MASTER_ADDR, MASTER_PORT, NODE_RANK) while the job runs.

    The lock file is in the user's runtime folder and is removed at the end. The kernel releases the lock when the
    process ends.

    Raises:
        ClusterError: another launch on this machine holds the lock, or the folder is not safe.
    """
    identity = f"{settings.master_addr}:{settings.master_port} node {settings.node_rank}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = find_runtime_folder()
    _remove_abandoned(folder)
    path = folder / f"launch_{name}.lock"
    descriptor = _open_and_lock(path)
    if isinstance(descriptor, str):
        raise _refuse(settings, descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def find_runtime_folder() -> Path:
    """Return XDG_RUNTIME_DIR/ascend_cpt or, if unusable, a folder of this user in the temporary folder.

    Raises:
        ClusterError: the folder cannot be created, or other users can write to it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and _is_private(Path(runtime)):
        folder = Path(runtime) / "ascend_cpt"
    else:
        folder = Path(tempfile.gettempdir()) / f"ascend_cpt_{os.getuid()}"
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    except OSError as error:
        raise ClusterError(f"{folder}: cannot be created for the launcher's lock file: {error.strerror}") from error
    if not _is_private(folder):
        raise ClusterError(
            f"{folder}: must be a folder that belongs to you and that no one else can write to, for the launcher's "
            "lock file; remove it, or set XDG_RUNTIME_DIR or TMPDIR to another folder"
        )
    return folder


def _is_private(folder: Path) -> bool:
    """Return whether this is a real folder (not a link), owned by this user, that no one else can write to."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return is_own and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _open_and_lock(path: Path) -> int | str:
    """Return the descriptor of the locked file, or the text written to it by the process that holds the lock."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ClusterError(
                f"{path}: the launcher's lock file cannot be opened ({error.strerror}); remove it"
            ) from error
        if not take_lock(descriptor, path, risk=_RISK):
            holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
            os.close(descriptor)
            return holder or "?"
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        os.close(descriptor)  # its holder removed the file after it was opened here


def _remove_abandoned(folder: Path) -> None:
    """Remove the lock files of launchers that were killed."""
    for path in folder.glob("launch_*.lock"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), path.lstat()):
                    path.unlink()
            finally:
                os.close(descriptor)


def _refuse(settings: LaunchSettings, process: str) -> ClusterError:
    holder = f"the launch with process id {process} on this machine"
    if settings.num_nodes > 1:
        return ClusterError(
            f"NODE_RANK {settings.node_rank} of the job at {settings.master_addr}:{settings.master_port} is already "
            f"taken by {holder}; give each node its own NODE_RANK, and each job its own MASTER_PORT"
        )
    return ClusterError(f"MASTER_PORT {settings.master_port} is in use by {holder}; wait for it or choose another port")
