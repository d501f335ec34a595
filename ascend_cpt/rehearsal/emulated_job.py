"""A job on this machine's emulated NPUs, on one node or on several nodes with separate output folders."""

from __future__ import annotations

import functools
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from ascend_cpt.checkpoint.locate import list_complete
from ascend_cpt.cluster.launch.job_secret import SECRET_VARIABLE
from ascend_cpt.cluster.messages.ports import LAUNCHER_PORT_VARIABLE, PORTS_OF_A_JOB, are_ports_free
from ascend_cpt.errors import CptError
from ascend_cpt.processes import die_with_parent
from ascend_cpt.softnpu.environment import SWITCH

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER = "scripts/msrun_launcher.sh"
FIRST_PORT, LAST_PORT = 20_000, 32_000
CLUSTER_TIMEOUT_S = 600
POLL_S = 0.05


class JobFailed(CptError):
    """A job that did not end as expected."""

    exit_code = 1


class EmulatedJob:
    """Starts, kills and waits for `run_cpt.py` under the launcher.

    Args:
        config: The configuration, whose devices are emulated.
        folder: Folder in which `node<i>/` with output, logs and console is written.
        workers: Number of processes on all nodes together.
        num_nodes: Number of launches, each of which is a node without shared storage.
        timeout_s: Time limit of each attempt.
        program: The script to launch.
    """

    def __init__(
        self,
        config: Path,
        folder: Path,
        *,
        workers: int,
        num_nodes: int = 1,
        timeout_s: float,
        program: str = "run_cpt.py",
    ) -> None:
        self._config, self._folder, self._workers, self._timeout_s = config, folder, workers, timeout_s
        self._program = program
        self._nodes = [folder / f"node{node}" for node in range(num_nodes)]
        self._launches: list[subprocess.Popen[bytes]] = []
        self._attempt, self._deadline = 0, 0.0

    def list_run_dirs(self, run_name: str) -> list[Path]:
        """Return the run folder of every node."""
        return [node / "output" / run_name for node in self._nodes]

    def start(self, *arguments: str) -> None:
        """Launch every node, passing `arguments` to run_cpt.py."""
        self._attempt += 1
        self._deadline = time.monotonic() + self._timeout_s
        port = find_port()
        self._launches = [self._launch(node, port, arguments) for node in range(len(self._nodes))]

    def _launch(self, node: int, port: int, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        folder = self._nodes[node]
        folder.mkdir(parents=True, exist_ok=True)
        words = f"{self._program} --config {self._config} --output_dir {folder / 'output'} {' '.join(arguments)}"
        where = [str(port)]
        if len(self._nodes) > 1:
            where = [str(self._workers // len(self._nodes)), "127.0.0.1", str(port), str(node)]
        logs = [str(folder / f"log_{self._attempt}"), "False", str(CLUSTER_TIMEOUT_S)]
        with self._console(node).open("wb") as console:
            return subprocess.Popen(
                ["bash", LAUNCHER, words, str(self._workers), *where, *logs],
                cwd=REPOSITORY,
                env=self._make_environment(),
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )

    def _write_secret(self) -> Path:
        """Return a file with the secret for this job's nodes."""
        path = self._folder / "secret"
        if not path.exists():
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(secrets.token_hex(32))
        return path

    def _make_environment(self) -> dict[str, str]:
        # Operators use several threads by default, but all workers share the cores.
        threads = max(1, (os.cpu_count() or 1) // self._workers)
        added = {
            SWITCH: "1",
            "SOFTNPU_THREADS": str(threads),
            "ASCEND_CPT_ALLOW_LOCAL_MASTER": "1",
            "ASCEND_CPT_PYTHON": sys.executable,
            # A killed worker must end the job, and another job's port must not be taken.
            "ASCEND_CPT_MAX_RESTARTS": "0",
            LAUNCHER_PORT_VARIABLE: "",
            SECRET_VARIABLE: str(self._write_secret()),
        }
        return {**os.environ, **added}

    def finish(self) -> list[int]:
        """Wait for all nodes and return their exit codes.

        Raises:
            JobFailed: when the nodes take longer than the limit.
        """
        try:
            return [launch.wait(max(self._deadline - time.monotonic(), 1)) for launch in self._launches]
        except subprocess.TimeoutExpired:
            raise JobFailed(f"not finished after {self._timeout_s:.0f} s; see {self._console(0)}") from None
        finally:
            self.kill()

    def expect_success(self) -> None:
        """Wait for all nodes.

        Raises:
            JobFailed: when a node fails. The message has the last error that the node printed.
        """
        for node, code in enumerate(self.finish()):
            if code:
                raise self._make_error(node, code)

    def kill_worker_after(self, step: int, run_name: str) -> None:
        """SIGKILL a worker of the last node as soon as the checkpoint of `step` is complete on every node.

        Raises:
            JobFailed: when the job ends before that, or takes longer than the limit.
        """
        try:
            self._wait_for_checkpoint(step, run_name)
            find_worker(self._launches[-1].pid).kill()
        except BaseException:
            self.kill()
            raise

    def _wait_for_checkpoint(self, step: int, run_name: str) -> None:
        roots = [run / "checkpoint" for run in self.list_run_dirs(run_name)]
        while not all(step in list_complete(root)[0] for root in roots):
            for node, launch in enumerate(self._launches):
                if launch.poll() is not None:
                    raise self._make_error(node, launch.returncode)
            if time.monotonic() > self._deadline:
                raise JobFailed(f"no checkpoint after {self._timeout_s:.0f} s; see {self._console(0)}")
            time.sleep(POLL_S)

    def _make_error(self, node: int, code: int) -> JobFailed:
        return JobFailed(f"{self.find_error(node)} (exit code {code}; see {self._console(node)})")

    def kill(self) -> None:
        """SIGKILL the launchers that are still running. Their workers die with them."""
        for launch in self._launches:
            if launch.poll() is None:
                os.killpg(launch.pid, signal.SIGKILL)
                launch.wait()

    def find_error(self, node: int) -> str:
        """Return the last error in a node's console with its first problem, or else the last line."""
        lines = [line for line in self.read_console(node).splitlines() if line.strip()] or ["no output"]
        errors = [index for index, line in enumerate(lines) if line.startswith("error:")]
        if not errors:
            return lines[-1].strip()
        error, problems = lines[errors[-1]], lines[errors[-1] + 1 :]
        return f"{error} {problems[0].strip()}" if problems and error.endswith(":") else error

    def read_console(self, node: int = 0) -> str:
        """Return the output of the newest attempt on a node."""
        return self._console(node).read_text(encoding="utf-8", errors="replace")

    def _console(self, node: int) -> Path:
        return self._nodes[node] / f"console_{self._attempt}.txt"


def find_worker(launcher_pid: int) -> psutil.Process:
    """Return a worker process that msrun started under a launcher.

    Raises:
        JobFailed: when there is none.
    """
    for process in psutil.Process(launcher_pid).children(recursive=True):
        try:
            if process.environ().get("MS_ROLE") == "MS_WORKER":
                return process
        except psutil.Error:
            continue
    raise JobFailed("no worker process left to kill: the job had just ended; run the command again")


def find_port() -> int:
    """Return a free port whose next two ports are also free, because a job listens on three.

    Raises:
        JobFailed: when there is none.
    """
    start = FIRST_PORT + (os.getpid() + int(time.monotonic())) % 2000 * 4
    for port in range(start, LAST_PORT, PORTS_OF_A_JOB + 1):
        if are_ports_free(port):
            return port
    raise JobFailed(f"no free port between {start} and {LAST_PORT}")
