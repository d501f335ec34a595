"""The secret shared by a job's processes, and the keys derived from it.

The secret is read from a file that only its owner can read, or from standard input. It is never passed as an argument,
in an environment variable or in a message.
"""

from __future__ import annotations

import hmac
import os
import stat
import sys
from functools import cache
from pathlib import Path

from ascend_cpt.cluster.messages.private_file import read_regular_file
from ascend_cpt.errors import ClusterError

# Shorter secrets could be brute-forced: anyone who can connect can collect proofs to compare guesses with.
MIN_SECRET_BYTES = 32
MAX_SECRET_BYTES = 4096
# The secret of a job started with --insecure. Everyone knows it, so it proves nothing.
INSECURE_SECRET = b"ascend_cpt --insecure"
INSECURE_VARIABLE = "ASCEND_CPT_INSECURE"
STANDARD_INPUT = "-"
# A job's two servers. Both sides of a connection must use the same purpose, and each purpose has its own key.
LAUNCHERS, WORKERS = "launchers", "workers"


def derive_key(secret: bytes, purpose: str) -> bytes:
    """Return the 32-byte key for one purpose. It reveals neither the secret nor another purpose's key."""
    return hmac.digest(secret, f"ascend_cpt key: {purpose}".encode(), "sha256")


def read_secret_file(path: Path) -> bytes:
    """Return the content of a secret file, without surrounding whitespace.

    Raises:
        ClusterError: when the file cannot be read, is not a regular file, is owned by a user other than this one or
            root, can be read by others, or is too short or too long.
    """
    try:
        content, status = read_regular_file(path, MAX_SECRET_BYTES + len(b"\n") + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ClusterError(
            f"{path}: the job secret cannot be read ({reason}); put the job's secret there on every node "
            "(docs/multi_node.md, section 4)"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise ClusterError(f"{path}: the job secret must be in a regular file; give the path of one")
    if status.st_uid not in (os.geteuid(), 0):
        raise ClusterError(f"{path}: belongs to another user; use a secret file of your own")
    if status.st_mode & 0o077:
        raise ClusterError(
            f"{path}: others may read the job secret (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 {path}"
        )
    return check_secret(content, str(path))


def read_secret_from_input() -> bytes:
    """Return the first line of standard input as the secret. It is read once per process.

    Raises:
        ClusterError: when standard input is a terminal, or the line is too short or too long.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise ClusterError("the job secret is expected on standard input, which is a terminal; redirect a file into it")
    return check_secret(_read_line(), "standard input")


@cache
def _read_line() -> bytes:
    line = b""
    while b"\n" not in line and len(line) <= MAX_SECRET_BYTES and (byte := os.read(0, 1)):
        line += byte
    return line


def check_secret(content: bytes, source: str) -> bytes:
    """Return the secret in `content`, without surrounding whitespace. `source` says where the secret is from.

    Raises:
        ClusterError: when the secret is too short or too long. The message does not contain the secret.
    """
    secret = content.strip()
    # Longer content may have been read only in part.
    if len(secret) < MIN_SECRET_BYTES or len(content.removesuffix(b"\n")) > MAX_SECRET_BYTES:
        raise ClusterError(
            f"{source}: a job secret must have {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes; make one with "
            'python3 -c "import secrets; print(secrets.token_hex(32))"'
        )
    return secret
