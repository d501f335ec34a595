"""Start one node's processes, watch them, tell why they failed, and leave none behind.

msrun starts the scheduler (on node 0) and the workers and ends. Linux then gives its children to the nearest ancestor
that asked for orphans, which is this process: so it sees the exit code of each worker the moment it dies.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

import psutil

from ascend_cpt.cluster.arguments import LaunchPlan
from ascend_cpt.cluster.worker_log import LogFollower, describe_failure, explain_rendezvous
from ascend_cpt.errors import EXIT_FAILURE, EXIT_OK, EXIT_USER_ERROR

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
POLL_S = 0.05
# From the first failure to killing the rest: the others may print what they saw.
FAILURE_GRACE_S = 5.0
# From the user's signal to killing: a worker may save.
STOP_GRACE_S = 20.0
# The scheduler ends by itself about two seconds after the last worker.
SCHEDULER_GRACE_S = 10.0
FORWARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """One launch on one node, from start to the exit code."""

    def __init__(self, plan: LaunchPlan, command: list[str], environment: Mapping[str, str]) -> None:
        self._plan = plan
        self._command = command
        self._environment = environment
        self._follower = LogFollower(plan.worker_log(plan.first_rank), sys.stdout)
        self._starter_pid = 0
        self._ranks: dict[int, int] = {}
        self._scheduler_pid: int | None = None
        self._scheduler_code = 0
        self._failures: dict[int, int] = {}
        self._received: list[int] = []

    def run(self) -> int:
        """Run the job and return the launcher's exit code; every process of the job has ended then.

        0: all workers ended well. 2: the worker that failed first ended with 2. 128 + n: stopped by signal n. Else 1.
        """
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        # What is ignored stays ignored: so nohup keeps the job when its terminal closes.
        heard = [number for number in FORWARDED_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, self._receive) for number in heard}
        try:
            self._start()
            return self._watch()
        finally:
            self._kill_all()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self._received.append(number)

    def _start(self) -> None:
        alone = self._plan.num_workers == 1
        log = self._plan.worker_log(0) if alone else self._plan.msrun_log
        with log.open("wb") as output:
            # A session of its own: Ctrl-C reaches the job through us only.
            process = subprocess.Popen(
                self._command,
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process.returncode = 0  # We reap all children ourselves.
        if alone:
            self._ranks = {process.pid: 0}
        else:
            self._starter_pid = process.pid

    def _watch(self) -> int:
        if self._starter_pid and (code := self._wait_for_starter()) is not None:
            return code
        self._wait_until(lambda: not self._ranks or bool(self._failures or self._received or self._scheduler_code))
        if self._scheduler_code:
            # The workers are about to fail as well, and know more about the reason.
            self._wait_until(lambda: not self._ranks or bool(self._failures or self._received), FAILURE_GRACE_S)
        if not (self._failures or self._received):
            # The workers of other nodes may still need the scheduler.
            limit_s = SCHEDULER_GRACE_S if self._plan.num_nodes == 1 else self._plan.cluster_timeout_s
            self._wait_until(lambda: not self._scheduler_pid or bool(self._received), limit_s)
        if self._received:
            return self._stop()
        self._follower.pump(at_end=True)
        return self._report_failure() if self._failures or self._scheduler_code else EXIT_OK

    def _wait_for_starter(self) -> int | None:
        """Wait until msrun has started all processes; return an exit code when the launch ends here."""
        while not (ended := os.waitid(os.P_PID, self._starter_pid, os.WEXITED | os.WNOHANG)):
            self._follower.pump()
            time.sleep(POLL_S)
            if self._received:
                return self._stop()
        if ended.si_status != 0:
            for line in describe_failure(self._plan.msrun_log):
                _say(line)
            _say(f"error: msrun could not start the job; its log: {_relative(self._plan.msrun_log)}")
            return EXIT_FAILURE
        self._identify_children()
        return None

    def _identify_children(self) -> None:
        """Find the rank of each worker: msrun starts them in order, each the leader of a session of its own.

        Works for those that died already, too, since nobody but us reaps them.
        """
        leaders = []
        for child in psutil.Process().children():
            session = os.getsid(child.pid)
            if session == child.pid:
                leaders.append((child.create_time(), child.pid))
            elif session == self._starter_pid:
                self._scheduler_pid = child.pid
        if len(leaders) > self._plan.num_local_workers:
            # A worker that is over already left a process of its own behind, which now is our child, too.
            leaders = [(time_s, pid) for time_s, pid in leaders if _runs_script(pid, self._plan.script)]
        first = self._plan.first_rank
        self._ranks = {pid: rank for rank, (_, pid) in enumerate(sorted(leaders), start=first)}

    def _follow_and_reap(self) -> None:
        """Show new output, note which workers ended, then wait a moment."""
        self._follower.pump()
        for pid, code in _reap():
            if pid == self._scheduler_pid:
                self._scheduler_pid = None
                self._scheduler_code = code
            elif (rank := self._ranks.pop(pid, None)) is not None and code != 0:
                self._failures[rank] = code
        time.sleep(POLL_S)

    def _report_failure(self) -> int:
        """Tell which worker failed first and why; return the exit code."""
        if self._failures:
            # Those that ended within one poll: the one that fell silent first.
            rank = min(self._failures, key=lambda rank: (_last_write_ns(self._plan.worker_log(rank)), rank))
            name, code, log = f"worker {rank}", self._failures[rank], self._plan.worker_log(rank)
        else:
            name, code, log = "the scheduler", self._scheduler_code, self._plan.scheduler_log
        lines = describe_failure(log)
        if explained := explain_rendezvous(lines, self._plan):
            line, code = explained
            _say(line)
            _say(f"{name} met this first; its log: {_relative(log)}")
        else:
            if not self._is_on_terminal(lines):
                _say("\n".join(lines))
            hint = " (out of memory? see dmesg)" if code == -signal.SIGKILL else ""
            cause = f"was killed by {_signal_name(-code)}{hint}" if code < 0 else f"failed with exit code {code}"
            _say(f"{name} {cause}; its log: {_relative(log)}")
        return EXIT_USER_ERROR if code == EXIT_USER_ERROR else EXIT_FAILURE

    def _is_on_terminal(self, lines: list[str]) -> bool:
        """Tell whether the followed worker has just printed this where our own lines go, too."""
        return not lines or (os.path.sameopenfile(1, 2) and self._follower.has_shown(lines[0]))

    def _stop(self) -> int:
        """Pass the user's signal on and wait for the workers to end; a second signal kills at once."""
        number = self._received[0]
        _say(f"{_signal_name(number)}: stopping {len(self._ranks)} workers (once more to kill them)")
        self._signal_workers(number)
        self._wait_until(lambda: not self._ranks or len(self._received) > 1, STOP_GRACE_S)
        self._follower.pump(at_end=True)
        return 128 + number

    def _signal_workers(self, number: int) -> None:
        for pid in self._ranks:
            # Not reaped yet, so the number is still this worker's and not a stranger's.
            os.killpg(pid, number)

    def _wait_until(self, done: Callable[[], bool], limit_s: float = math.inf) -> None:
        deadline = time.monotonic() + limit_s
        while not done() and time.monotonic() < deadline:
            self._follow_and_reap()

    def _kill_all(self) -> None:
        """End every process of the job, politely while there is time after a failure, and reap them."""
        if self._ranks and not self._received:
            self._signal_workers(signal.SIGTERM)
            self._wait_until(lambda: not self._ranks, FAILURE_GRACE_S)
        while children := psutil.Process().children(recursive=True):
            for child in children:
                try:
                    child.kill()
                except psutil.NoSuchProcess:
                    continue
            _reap()
            time.sleep(0.01)


def _runs_script(pid: int, script: Path) -> bool:
    """Return whether a process is a worker: it names the script, or has ended and names nothing any more."""
    words = psutil.Process(pid).cmdline()
    return not words or str(script) in words


def _reap() -> list[tuple[int, int]]:
    """Return (pid, exit code) of the children that have ended; a negative code is the signal that killed it."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, os.waitstatus_to_exitcode(status)))


def _last_write_ns(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _relative(path: Path) -> str:
    """Return `path` as a person in this folder would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
