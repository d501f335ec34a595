"""Starts an attempt's processes on one node, monitors them, reports failures, and cleans up.

msrun starts the scheduler (on node 0) and the workers, then exits. Their new parent is the nearest subreaper, which is
this process, so it receives each worker's exit code at once.
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
from dataclasses import replace
from pathlib import Path

import psutil

from ascend_cpt.cluster.job.launcher_files import read_result, read_step, result_path
from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.coordination.coordinator_client import CoordinatorClient
from ascend_cpt.cluster.launch.coordination.restart_policy import CONTINUES, DONE, End, Outcome, count_memory_kills
from ascend_cpt.cluster.launch.signals import StopRequests, name_signal
from ascend_cpt.cluster.launch.terminal import print_status
from ascend_cpt.cluster.launch.workers.hang_diagnosis import (
    EXTERNAL,
    WorkerState,
    describe_states,
    diagnose,
    find_stopped,
    format_ranks,
)
from ascend_cpt.cluster.launch.workers.hang_watchdog import Hang, HangWatchdog
from ascend_cpt.cluster.launch.workers.worker_log import LogFollower, describe_failure, explain_rendezvous
from ascend_cpt.errors import EXIT_FAILURE, EXIT_USER_ERROR

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
POLL_S = 0.05
# Time between the first failure and killing the rest, so that the others can print their errors.
FAILURE_GRACE_S = 5.0
# The scheduler exits about two seconds after the last worker.
SCHEDULER_GRACE_S = 10.0
# A node that does not have the cause of the hang waits for the node that does to report first.
HANG_REPORT_GRACE_S = 30.0
# Exit codes of workers that saved and exited after a stop signal.
SIGNALLED_CODES = {128 + signal.SIGTERM, 128 + signal.SIGINT}


class Supervisor:
    """Runs one attempt on one node."""

    def __init__(
        self,
        settings: LaunchSettings,
        command: list[str],
        environment: Mapping[str, str],
        requests: StopRequests,
        client: CoordinatorClient,
    ) -> None:
        self._settings = settings
        self._command = command
        self._environment = environment
        self._received, self._client = requests.received, client
        self._follower = LogFollower(settings.worker_log(settings.first_rank), sys.stdout)
        self._starter_pid = 0
        self._ranks: dict[int, int] = {}
        self._scheduler_pid: int | None = None
        self._scheduler_code = 0
        self._failures: dict[int, int] = {}
        self._num_memory_kills = count_memory_kills()
        self._watchdog = HangWatchdog(settings.progress_file, settings.hang_timeout_s)
        self._hang: Hang | None = None
        self.reported_hang = False
        """Whether the outcome of the attempt is a hang."""

    def run(self) -> Outcome:
        """Run the attempt and return its outcome. All its processes have ended by then."""
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            self._start()
            outcome = self._watch()
        finally:
            self._kill_all()
        return replace(outcome, step=read_step(self._settings.progress_file))

    def _start(self) -> None:
        self._settings.continue_file.unlink(missing_ok=True)
        first = self._settings.first_rank
        for rank in range(first, first + self._settings.num_local_workers):
            result_path(self._settings.log_dir, rank).unlink(missing_ok=True)
        alone = self._settings.num_workers == 1
        log = self._settings.worker_log(0) if alone else self._settings.msrun_log
        with log.open("wb") as output:
            # A separate session, so that Ctrl-C reaches only the launcher.
            process = subprocess.Popen(
                self._command,
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process.returncode = 0  # _reap() collects all children.
        if alone:
            self._ranks = {process.pid: 0}
        else:
            self._starter_pid = process.pid

    def _watch(self) -> Outcome:
        if self._starter_pid and (outcome := self._wait_for_starter()):
            return outcome
        self._wait_until(
            lambda: not self._ranks or bool(self._failures or self._scheduler_code or self._hang) or self._must_end()
        )
        if self._hang and not (self._failures or self._scheduler_code or self._must_end()):
            outcome = self._report_hang(self._hang)
            if not self._must_end():
                self.reported_hang = True
                return outcome
        if self._scheduler_code:
            # The workers are about to fail as well, with more detailed errors.
            self._wait_until(lambda: not self._ranks or bool(self._failures) or self._must_end(), FAILURE_GRACE_S)
        if not (self._failures or self._must_end()):
            # Workers on other nodes may still need the scheduler.
            limit_s = SCHEDULER_GRACE_S if self._settings.num_nodes == 1 else self._settings.cluster_timeout_s
            self._wait_until(lambda: not self._scheduler_pid or self._must_end(), limit_s)
        if self._received:
            return self._stop()
        self._follower.pump(at_end=True)
        has_failed = bool(self._failures or self._scheduler_code) or self._client.is_cancelled()
        if has_failed and (stopped := find_stopped({rank: pid for pid, rank in self._ranks.items()})):
            return self._report_stopped(stopped)
        # A scheduler failure does not matter once all workers have succeeded.
        if self._failures or (self._scheduler_code and self._ranks):
            return self._report_failure()
        if self._client.is_cancelled():
            return Outcome(end=End.CANCELLED, code=EXIT_FAILURE)
        return CONTINUES if self._settings.continue_file.exists() else DONE

    def _must_end(self) -> bool:
        return bool(self._received) or self._client.is_cancelled()

    def _wait_for_starter(self) -> Outcome | None:
        """Wait until msrun has started all processes. Return an outcome if the attempt ends here."""
        while not (ended := os.waitid(os.P_PID, self._starter_pid, os.WEXITED | os.WNOHANG)):
            self._follower.pump()
            time.sleep(POLL_S)
            if self._received:
                return self._stop()
        if ended.si_status != 0:
            lines = describe_failure(self._settings.msrun_log)
            reason = f"error: msrun could not start the job; its log: {_relative(self._settings.msrun_log)}"
            print_status("\n".join([*lines, reason]))
            return Outcome(end=End.FAILED, code=EXIT_FAILURE, lines=tuple(lines), reason=reason)
        self._identify_children()
        return None

    def _identify_children(self) -> None:
        """Find each worker's rank, given that msrun starts workers in rank order, each as a session leader.

        This includes workers that have already exited, since only this process reaps them.
        """
        leaders = []
        for child in psutil.Process().children():
            session = os.getsid(child.pid)
            if session == child.pid:
                leaders.append((child.create_time(), child.pid))
            elif session == self._starter_pid:
                self._scheduler_pid = child.pid
        if len(leaders) > self._settings.num_local_workers:
            # A child of a worker that exited, now reparented to this process.
            leaders = [(time_s, pid) for time_s, pid in leaders if _runs_script(pid, self._settings.script)]
        first = self._settings.first_rank
        self._ranks = {pid: rank for rank, (_, pid) in enumerate(sorted(leaders), start=first)}

    def _follow_and_reap(self) -> None:
        """Print new output, record which workers ended, then sleep for one poll interval."""
        self._follower.pump()
        for pid, code in _reap():
            if pid == self._scheduler_pid:
                self._scheduler_pid = None
                self._scheduler_code = code
            elif (rank := self._ranks.pop(pid, None)) is not None and (code := self._correct(rank, code)) != 0:
                self._failures[rank] = code
        if self._ranks and self._hang is None:
            self._hang = self._watchdog.check(time.monotonic())
        time.sleep(POLL_S)

    def _correct(self, rank: int, code: int) -> int:
        """Return the exit code that a worker recorded if a signal later ended it while MindSpore shut down."""
        if code >= 0 or (result := read_result(self._settings.log_dir, rank)) is None:
            return code
        print_status(
            f"warning: worker {rank} was killed by {name_signal(-code)} while shutting down, after its work had ended "
            f"(exit code {result}); its log: {_relative(self._settings.worker_log(rank))}"
        )
        return result

    def _report_failure(self) -> Outcome:
        """Print which worker failed first and why, and return the outcome."""
        if self._failures:
            # Among workers that ended within one poll, prefer a killed one, else the one with the oldest log write.
            rank = min(
                self._failures,
                key=lambda rank: (
                    self._failures[rank] != -signal.SIGKILL,
                    _last_write_ns(self._settings.worker_log(rank)),
                    rank,
                ),
            )
            name, code, log = f"worker {rank}", self._failures[rank], self._settings.worker_log(rank)
        else:
            name, code, log = "the scheduler", self._scheduler_code, self._settings.scheduler_log
        lines = describe_failure(log)
        if explained := explain_rendezvous(lines, self._settings):
            line, code = explained
            reason = f"{name} was the first to report this; its log: {_relative(log)}"
            print_status(f"{line}\n{reason}")
            return Outcome(end=self._classify_exit(code), code=code, lines=(line,), reason=reason)
        if not self._is_on_terminal(lines):
            print_status("\n".join(lines))
        out_of_memory = code == -signal.SIGKILL and count_memory_kills() > self._num_memory_kills
        if out_of_memory:
            cause = "was killed by the kernel: this machine is out of memory (see dmesg)"
        elif code == -signal.SIGKILL:
            cause = "was killed by SIGKILL (manually, by the cluster's scheduler, or at a container's memory limit)"
        else:
            cause = f"was killed by {name_signal(-code)}" if code < 0 else f"failed with exit code {code}"
        reason = f"{name} {cause}; its log: {_relative(log)}"
        print_status(reason)
        end = End.FAILED if out_of_memory else self._classify_exit(code)
        kept = code if code in {EXIT_USER_ERROR, *SIGNALLED_CODES} else EXIT_FAILURE
        return Outcome(end=end, code=kept, lines=tuple(lines), reason=reason)

    def _report_hang(self, hang: Hang) -> Outcome:
        """Print what the workers are doing and which is the likely cause, and return the outcome."""
        states, causes = diagnose({rank: pid for pid, rank in self._ranks.items()}, self._settings.log_dir)
        lines = describe_states(states)
        if not causes and self._settings.num_nodes > 1:
            self._wait_until(self._must_end, HANG_REPORT_GRACE_S)
        folder = _relative(self._settings.log_dir)
        names = format_ranks([state.rank for state in causes]) if causes else "none of this node's workers"
        reason = f"hang: {hang.describe()}; likely cause: {names}; stacks in {folder}/stacks_*.txt"
        if not self._must_end():
            print_status("\n".join([*lines, reason]))
        is_external = bool(causes) and causes[0].priority == EXTERNAL
        end = End.KILLED if is_external or not causes else End.FAILED
        return Outcome(end=end, code=EXIT_FAILURE, lines=tuple(lines), reason=reason)

    def _report_stopped(self, stopped: list[WorkerState]) -> Outcome:
        """Print which workers are stopped, which made the other processes fail, and return the outcome."""
        log = _relative(self._settings.worker_log(stopped[0].rank))
        reason = f"{'; '.join(describe_states(stopped))}, so the others could not continue; its log: {log}"
        print_status(reason)
        return Outcome(end=End.KILLED, code=EXIT_FAILURE, reason=reason)

    def _classify_exit(self, code: int) -> End:
        """Classify a worker's exit code for the restart decision."""
        if code == EXIT_USER_ERROR or code in SIGNALLED_CODES or self._settings.stop_file.exists():
            return End.FINAL
        return End.KILLED if code in (-signal.SIGKILL, -signal.SIGTERM) else End.FAILED

    def _is_on_terminal(self, lines: list[str]) -> bool:
        """Return whether the followed worker's output already shows these lines on the launcher's terminal."""
        return not lines or (os.path.sameopenfile(1, 2) and self._follower.has_shown(lines[0]))

    def _stop(self) -> Outcome:
        """Forward the stop signal and wait for the workers to end. A second signal kills them at once."""
        number = self._received[0]
        self._client.announce_stop(number)
        print_status(
            f"{name_signal(number)}: stopping the workers, which have {self._settings.stop_grace_s} s to save (send "
            "the signal again to kill them)"
        )
        # Workers save on SIGTERM; SIGHUP is treated the same.
        self._signal_workers(signal.SIGTERM if number == signal.SIGHUP else number)
        num_received = len(self._received)
        self._wait_until(lambda: not self._ranks or len(self._received) > num_received, self._settings.stop_grace_s)
        self._follower.pump(at_end=True)
        if self._ranks:
            print_status(
                f"workers that did not exit in time and were killed: {len(self._ranks)}; the next start resumes from "
                "the newest checkpoint"
            )
        return Outcome(end=End.STOPPED, code=128 + number)

    def _signal_workers(self, number: int) -> None:
        for pid in self._ranks:
            # Not reaped yet, so the id cannot have been reused.
            os.killpg(pid, number)

    def _wait_until(self, done: Callable[[], bool], limit_s: float = math.inf) -> None:
        deadline = time.monotonic() + limit_s
        while not done() and time.monotonic() < deadline:
            self._follow_and_reap()

    def _kill_all(self) -> None:
        """End and reap all of the job's processes. After a failure, send SIGTERM first."""
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
    """Return whether a process is a worker: its command includes the script, or is unknown because it has ended."""
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.ZombieProcess:
        return True
    return not words or str(script) in words


def _reap() -> list[tuple[int, int]]:
    """Return (pid, exit code) of each child that has ended. A negative code is the signal that killed the child."""
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


def _relative(path: Path) -> str:
    """Return `path` relative to the current folder if it is inside that folder."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
