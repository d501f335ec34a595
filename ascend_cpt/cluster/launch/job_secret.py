"""Where a launcher gets the job secret from, and how its workers get their key."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.cluster.messages.secret import (
    INSECURE_SECRET,
    INSECURE_VARIABLE,
    LAUNCHERS,
    STANDARD_INPUT,
    WORKERS,
    derive_key,
    read_secret_file,
    read_secret_from_input,
)
from ascend_cpt.errors import ClusterError

SECRET_OPTION, INSECURE_OPTION = "--secret-file", "--insecure"
SECRET_VARIABLE = "ASCEND_CPT_SECRET_FILE"
DEFAULT_SECRET = Path("ascend_cpt/secret")  # in the user's configuration folder

SECRET_USAGE = f"""\
  {f"{SECRET_OPTION} PATH":22} file with the job secret, readable only by you; {STANDARD_INPUT} reads standard input \
({SECRET_VARIABLE})
  {INSECURE_OPTION:22} start several nodes without a secret; anyone who reaches the ports can stop the job \
({INSECURE_VARIABLE}=1)"""


@dataclass(frozen=True, kw_only=True)
class SecretSource:
    """The source of the secret: a path, "-" for standard input, "" for the default, or none (`insecure`)."""

    path: str = ""
    insecure: bool = False


@dataclass(frozen=True, kw_only=True, repr=False)
class JobSecret:
    """The secret of a job."""

    secret: bytes

    @property
    def launcher_key(self) -> bytes:
        return derive_key(self.secret, LAUNCHERS)

    @property
    def channel_key(self) -> bytes:
        return derive_key(self.secret, WORKERS)


def split_secret_options(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[list[str], SecretSource]:
    """Return the other arguments and the source of the secret. Arguments override `environ`.

    Raises:
        ClusterError: when a value is missing or invalid, or both options are given.
    """
    rest: list[str] = []
    paths: list[str] = []
    insecure = False
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name == SECRET_OPTION:
            paths.append(value if equals else next(words, ""))
        elif word == INSECURE_OPTION:
            insecure = True
        else:
            rest.append(word)
    if paths and not paths[-1]:
        raise ClusterError(f"{SECRET_OPTION} needs a path, or {STANDARD_INPUT} for standard input")
    if paths and insecure:
        raise ClusterError(f"{SECRET_OPTION} and {INSECURE_OPTION} exclude each other; drop one of the two")
    if paths or insecure:
        return rest, SecretSource(path=paths[-1] if paths else "", insecure=insecure)
    switch = environ.get(INSECURE_VARIABLE, "")
    if switch not in {"", "0", "1"}:
        raise ClusterError(f"{INSECURE_VARIABLE} must be 0 or 1, not {switch!r}")
    return rest, SecretSource(path=environ.get(SECRET_VARIABLE, ""), insecure=switch == "1")


def find_secret(source: SecretSource, environ: Mapping[str, str], *, num_nodes: int) -> JobSecret:
    """Return the job's secret: a new one for a single node, else the one that all nodes were given.

    Raises:
        ClusterError: when several nodes have no secret, or the secret cannot be used.
    """
    if num_nodes == 1:
        return JobSecret(secret=secrets.token_bytes(32))
    if source.insecure:
        return JobSecret(secret=INSECURE_SECRET)
    if source.path == STANDARD_INPUT:
        return JobSecret(secret=read_secret_from_input())
    if source.path:
        return JobSecret(secret=read_secret_file(Path(source.path).expanduser()))
    default = find_default_file(environ)
    if not default.exists():
        raise ClusterError(
            f"the job has {num_nodes} nodes but no secret, so anyone who reaches its ports could stop it; put the same "
            f"secret into {default} on every node (docs/multi_node.md, section 4), give {SECRET_OPTION}, or accept "
            f"the risk with {INSECURE_OPTION}"
        )
    return JobSecret(secret=read_secret_file(default))


def find_default_file(environ: Mapping[str, str]) -> Path:
    """Return the default secret file: $XDG_CONFIG_HOME/ascend_cpt/secret or ~/.config/ascend_cpt/secret."""
    folder = environ.get("XDG_CONFIG_HOME", "")
    home = Path(environ.get("HOME") or Path.home())
    return (Path(folder) if folder else home / ".config") / DEFAULT_SECRET


@contextmanager
def hold_channel_key(secret: JobSecret) -> Iterator[Path]:
    """Yield a file with the workers' key, which only this user can read, in the user's runtime folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = Path(tempfile.mkdtemp(prefix="ascend_cpt_", dir=runtime if os.path.isdir(runtime) else None))
    try:
        path = folder / "key"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secret.channel_key.hex())
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)
