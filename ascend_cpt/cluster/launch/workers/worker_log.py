"""Handles worker logs: shows live output, extracts a failed worker's error, and archives earlier logs."""

from __future__ import annotations

import contextlib
import re
from collections import deque
from pathlib import Path
from typing import TextIO

from ascend_cpt.cluster.job.launcher_files import READY_NAME
from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.terminal import print_status
from ascend_cpt.errors import EXIT_FAILURE, EXIT_USER_ERROR
from ascend_cpt.files import write_text
from ascend_cpt.terminal_text import strip_controls

# A record of MindSpore ("[WARNING] DEVICE(3992,7f..,python):2026-...") or of MindFormers ("2026-... - mindformers...").
FRAMEWORK_RECORD = re.compile(
    r"\[(?:DEBUG|INFO|WARNING|ERROR|CRITICAL|TRACE)\] [A-Z_]+\(\d+[,:].*|"
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - mindformers.*"
)
TRACEBACK_HEAD = "Traceback (most recent call last):"
USER_ERROR_HEAD = "error: "
# The exception's line: "RuntimeError: bang", "KeyboardInterrupt", "mindspore.x.SomeError: ...".
EXCEPTION_LINE = re.compile(r"[A-Za-z_][\w.]*(?::.*)?$")
# MindSpore prints its C++ stack below a heading between rules.
NATIVE_STACK_RULE = "-----"
MAX_MESSAGE_LINES = 12
NUM_LAST_LINES = 10
NUM_REMEMBERED_LINES = 100
MAX_READ_BYTES = 4 << 20
CAUSE_NAME = "interruption_cause"


class LogFollower:
    """Copies a growing log to a terminal, without control characters or MindSpore and MindFormers log records."""

    def __init__(self, path: Path, terminal: TextIO) -> None:
        self._path = path
        self._terminal = terminal
        self._offset_bytes = 0
        self._unfinished = b""
        self._shown: deque[str] = deque(maxlen=NUM_REMEMBERED_LINES)

    def pump(self, *, at_end: bool = False) -> None:
        """Print the lines added since the last call. An incomplete last line is held back unless `at_end`."""
        try:
            with self._path.open("rb") as log:
                log.seek(self._offset_bytes)
                added = log.read()
        except FileNotFoundError:
            return
        self._offset_bytes += len(added)
        *lines, self._unfinished = (self._unfinished + added).split(b"\n")
        if at_end and self._unfinished:
            lines.append(self._unfinished)
            self._unfinished = b""
        # A closed terminal must not end the job.
        with contextlib.suppress(OSError):
            for line in lines:
                self._show(line.decode("utf-8", errors="replace"))
            self._terminal.flush()

    def has_shown(self, line: str) -> bool:
        """Return whether this line is among the last lines printed."""
        return line in self._shown

    def _show(self, line: str) -> None:
        # A native log record may begin in the middle of a printed line.
        own = FRAMEWORK_RECORD.sub("", line)
        if own != line and not own.strip():
            return
        self._terminal.write(strip_controls(own) + "\n")
        self._shown.append(own)


def describe_failure(log: Path) -> list[str]:
    """Return a failure's cause from a log: an `error:` line, else the last Python exception, else the last lines.

    An exception after an `error:` line is the cause, whereas one before it was handled.
    """
    lines = _read_end(log)
    traceback = max((number for number, line in enumerate(lines) if line == TRACEBACK_HEAD), default=-1)
    user_errors = [line for line in lines[traceback + 1 :] if line.startswith(USER_ERROR_HEAD)]
    if user_errors:
        return user_errors[:1]
    if traceback >= 0:
        return _exception_of(lines[traceback + 1 :])
    own = [line for line in lines if line.strip() and not FRAMEWORK_RECORD.match(line)]
    return (own or [line for line in lines if line.strip()])[-NUM_LAST_LINES:]


def explain_rendezvous(lines: list[str], settings: LaunchSettings) -> tuple[str, int] | None:
    """Return an error line and exit code for MindSpore's messages about a failed rendezvous, else None."""
    text = "\n".join(lines)
    master = f"{settings.master_addr}:{settings.master_port}"
    if "Repeated registration node" in text:
        return (
            f"error: NODE_RANK {settings.node_rank} is taken: another node registered the same workers at "
            f"{master}; "
            "give each node its own NODE_RANK, and each job its own MASTER_PORT",
            EXIT_USER_ERROR,
        )
    if "Failed to initialize distributed job cluster" in text:
        return (
            f"error: the job's {settings.num_workers} workers did not all connect to {master} within "
            f"{settings.cluster_timeout_s} s; start all {settings.num_nodes} nodes with the same WORKER_NUM, "
            "MASTER_ADDR and "
            "MASTER_PORT, each with its own NODE_RANK, and check the other nodes' logs",
            EXIT_FAILURE,
        )
    return None


def write_cause(log_dir: Path, cause: str) -> None:
    """Keep why an attempt ended, so that the next launch can report it. "" removes an earlier cause.

    A failure, for example on a full disk, is only a warning, because the job can still be restarted.
    """
    path = log_dir / CAUSE_NAME
    try:
        if cause:
            write_text(path, cause)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        print_status(f"warning: {path}: {error.strerror}; a later launch cannot report why this attempt ended")


def read_cause(log_dir: Path) -> str:
    """Return the cause that an earlier launch on this node kept, or "" if there is none."""
    try:
        return strip_controls((log_dir / CAUSE_NAME).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""


def _exception_of(lines: list[str]) -> list[str]:
    """Return the last frame and the message of the traceback whose frames start `lines`."""
    frame: str | None = None
    for number, line in enumerate(lines):
        if line.startswith("  File "):
            frame = line.strip()
        elif not line.startswith(" ") and EXCEPTION_LINE.match(line):
            message = []
            for following in lines[number : number + MAX_MESSAGE_LINES]:
                if FRAMEWORK_RECORD.match(following) or following.startswith(NATIVE_STACK_RULE):
                    break
                message.append(following)
            while message and not message[-1].strip():
                message.pop()
            return [*message, *([f"  at {frame}"] if frame else [])]
    return lines[:MAX_MESSAGE_LINES]


def _read_end(log: Path) -> list[str]:
    """Return the lines in the last MAX_READ_BYTES of a log, or none if the log does not exist."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        size_bytes = file.seek(0, 2)
        file.seek(max(0, size_bytes - MAX_READ_BYTES))
        return file.read().decode("utf-8", errors="replace").splitlines()


def archive_logs(log_dir: Path) -> Path | None:
    """Move an earlier launch's logs from `log_dir` to `log_dir/earlier_<n>`. Return that folder, or None.

    Only files written by a launch are moved, because the folder may hold other files.
    """
    names = (
        *("worker_*.log", "scheduler.log", "msrun.log", "stacks_*.txt"),
        *("last_step", "last_step.activity", "stopped_itself", READY_NAME),
    )
    logs = [path for name in names for path in sorted(log_dir.glob(name))]
    if not logs:
        return None
    numbers = [int(path.name.rpartition("_")[2]) for path in log_dir.glob("earlier_*") if path.name[8:].isdecimal()]
    folder = log_dir / f"earlier_{max(numbers, default=0) + 1}"
    folder.mkdir()
    for path in logs:
        path.rename(folder / path.name)
    return folder
