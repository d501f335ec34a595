"""Starts a run on emulated NPUs, kills one of its workers, and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import psutil

from ascend_cpt.cluster.launch.workers.worker_log import FRAMEWORK_RECORD, describe_failure
from ascend_cpt.errors import ClusterError
from ascend_cpt.processes import die_with_parent
from ascend_cpt.rehearsal.prepare import SmallRun
from ascend_cpt.softnpu.environment import SWITCH

REPOSITORY = Path(__file__).resolve().parents[2]
PORTS_OF_A_JOB = 3  # the master's and the two above it
FIRST_PORT, LAST_PORT = 12_000, 32_000  # below those that the system gives to connections
CONNECT_TIMEOUT_S = 600
POLL_S = 0.05
# Variables of a launch around this one; a launch here has its own.
_OUTER = ("MS_", "RANK_", "WORLD_SIZE", "NNODES", "ASCEND_CPT_LAUNCHER", "ASCEND_CPT_MAX_RESTARTS")


class StepFailed(Exception):
    """A step of the rehearsal failed: the last error line, and the log that holds the rest."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class Process:
    """A program of this repository, in a session of its own; it ends with this process, however that ends."""

    def __init__(self, command: Sequence[str], log: Path, *, timeout_s: float, num_threads: int = 0) -> None:
        self.log = log
        self._deadline, self._timeout_s = time.monotonic() + timeout_s, timeout_s
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                list(command),
                cwd=REPOSITORY,
                env=_make_environment(num_threads),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait until `done()`.

        Raises:
            StepFailed: when the program ends first, or the time is over.
        """
        while not done():
            if self._process.poll() is not None and not done():
                raise StepFailed(describe_end(self.log, self._process.returncode), self.log)
            self._check_time()
            time.sleep(POLL_S)

    def finish(self) -> int:
        """Wait until the program has ended and return its exit code.

        Raises:
            StepFailed: when the time is over.
        """
        while self._process.poll() is None:
            self._check_time()
            time.sleep(POLL_S)
        return self._process.returncode

    def succeed(self) -> None:
        """Wait until the program has ended without an error.

        Raises:
            StepFailed: with its error.
        """
        code = self.finish()
        if code:
            raise StepFailed(describe_end(self.log, code), self.log)

    def kill_worker(self) -> list[psutil.Process]:
        """SIGKILL the last worker of the launch and return all of them.

        Raises:
            StepFailed: when none is running.
        """
        workers = _list_workers(self._process.pid)
        if not workers:
            raise StepFailed("no worker was running any more when one was to be killed", self.log)
        with contextlib.suppress(psutil.NoSuchProcess):
            workers[-1].kill()
        return workers

    def kill(self) -> None:
        """SIGKILL the program; the workers of a launcher end with it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            self.kill()
            raise StepFailed(f"did not end within {self._timeout_s:.0f} s; raise --timeout", self.log)


def start_run(run: SmallRun, attempt: int, *, timeout_s: float) -> Process:
    """Start a run's processes on emulated NPUs with the launcher.

    Args:
        run: The run.
        attempt: Counts the launches of the run.
        timeout_s: Limit of the launch.
    """
    form = [str(run.num_processes), str(find_port()), str(run.folder / f"logs_{attempt}"), "False"]
    command = f"run_cpt.py --config {run.config}"
    launcher = ["bash", "scripts/msrun_launcher.sh", command, *form, str(CONNECT_TIMEOUT_S), "--max-restarts", "0"]
    num_threads = max(1, (os.cpu_count() or 1) // run.num_processes)
    return Process(launcher, run.folder / f"launch_{attempt}.log", timeout_s=timeout_s, num_threads=num_threads)


def find_port() -> int:
    """Return a port that nobody listens on, nor on the two above it.

    Raises:
        ClusterError: when there is none.
    """
    span = LAST_PORT - FIRST_PORT
    for offset in range(0, span, PORTS_OF_A_JOB):
        port = FIRST_PORT + (os.getpid() * PORTS_OF_A_JOB + offset) % span
        if all(map(_is_free, range(port, port + PORTS_OF_A_JOB))):
            return port
    raise ClusterError(f"ports {FIRST_PORT} to {LAST_PORT}: no three successive ones are free; end other jobs")


def describe_end(log: Path, code: int) -> str:
    """Return one line that says how a program ended: its last error line, or its exit code."""
    lines = [line.strip() for line in describe_failure(log) if line.strip() and not FRAMEWORK_RECORD.match(line)]
    errors = [line for line in lines if "error" in line.lower()] or lines[-1:]
    text = errors[0] if errors else "it printed nothing"
    return f"exit code {code}: {text}"


def _make_environment(num_threads: int) -> dict[str, str]:
    """Return the environment of a program; with `num_threads` it runs on emulated NPUs."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_OUTER)}
    environment |= {"ASCEND_CPT_PYTHON": sys.executable, SWITCH: "1" if num_threads else "0"}
    if num_threads:
        environment["SOFTNPU_THREADS"] = environment.get("SOFTNPU_THREADS") or str(num_threads)
    return environment


def _list_workers(launcher: int) -> list[psutil.Process]:
    """Return the training processes below a launcher: those that have a session of their own and run the script."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(launcher).children(recursive=True)
        return [child for child in children if _is_worker(child)]
    return []


def _is_worker(process: psutil.Process) -> bool:
    try:
        is_leader = os.getsid(process.pid) == process.pid
        return (
            is_leader and process.environ().get("MS_ROLE") != "MS_SCHED" and "run_cpt.py" in " ".join(process.cmdline())
        )
    except (psutil.Error, ProcessLookupError):
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True
