"""Runs jobs as processes, several at a time. Complete runs are reused, and interrupted ones are resumed."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.experiment.jobs import REPOSITORY, Job, read_curves
from ascend_cpt.monitor.sinks import format_duration
from ascend_cpt.processes import die_with_parent
from ascend_cpt.run.launch.reason import find_reason

POLL_S = 0.2
STOP_GRACE_S = 120.0
"""A run that is asked to stop saves a checkpoint first."""


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass
class Running:
    """A job's process."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    start_s: float


class Runner:
    """Runs jobs in `folder`.

    Args:
        folder: Folder for the run folders and logs.
        workers: Number of runs at the same time.
        report: Takes progress lines.
    """

    def __init__(self, folder: Path, workers: int, report: Callable[[str], None]) -> None:
        self.folder, self.workers, self.report = folder.resolve(), workers, report
        self.failed: dict[str, str] = {}
        """Job name → why it failed."""
        self.seconds: dict[str, float] = {}
        """Job name → duration of a run of this session."""
        self._trained_tokens = 0

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs that are not complete, after the jobs they need.

        Raises:
            KeyboardInterrupt: after the running jobs have saved and stopped.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        done = {job.name for job in jobs if read_curves(self.folder / job.name) is not None}
        waiting = [job for job in jobs if job.name not in done]
        self.report(f"runs: {len(jobs)}, complete: {len(done)}, to train: {len(waiting)}; folder: {self.folder}")
        total, finished, running = len(waiting), 0, list[Running]()
        start_s = time.monotonic()
        try:
            while waiting or running:
                for job in list(waiting):
                    if job.needs is not None and job.needs in self.failed:
                        self.failed[job.name] = f"its base failed: {self.failed[job.needs]}"
                        waiting.remove(job)
                    elif len(running) < self.workers and (job.needs is None or job.needs in done):
                        running.append(self._start(job))
                        waiting.remove(job)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    finished += 1
                    self._finish(one, done)
                    left = [*waiting, *(other.job for other in running)]
                    self._report_progress(one.job, f"{finished}/{total}", left, time.monotonic() - start_s)
                time.sleep(POLL_S if running else 0)
        except BaseException:
            self._stop(running)
            raise

    def _start(self, job: Job) -> Running:
        log = self.folder / f"{job.name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                job.make_command(self.folder, max(1, count_cores() // self.workers)),
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )
        return Running(job=job, process=process, log=log, start_s=time.monotonic())

    def _finish(self, one: Running, done: set[str]) -> None:
        """Record whether a process trained its run to the end."""
        self.seconds[one.job.name] = time.monotonic() - one.start_s
        if one.process.returncode == 0 and read_curves(self.folder / one.job.name) is not None:
            done.add(one.job.name)
            self._trained_tokens += one.job.tokens
            return
        console = one.log.read_text(encoding="utf-8", errors="replace")
        self.failed[one.job.name] = f"{find_reason(console, one.process.returncode)}; see {one.log}"

    def _report_progress(self, job: Job, place: str, left: Sequence[Job], elapsed_s: float) -> None:
        outcome = self.failed.get(job.name)
        line = f"{place} {job.variant}, seed {job.seed}: " + (
            f"failed: {outcome}" if outcome else f"trained in {format_duration(self.seconds[job.name])}"
        )
        tokens = sum(other.tokens for other in left)
        if tokens and self._trained_tokens:
            line += f"; ETA {format_duration(tokens * elapsed_s / self._trained_tokens)}"
        self.report(line)

    def _stop(self, running: Sequence[Running]) -> None:
        """Let the running jobs save a checkpoint and stop."""
        for one in running:
            if one.process.poll() is None:
                os.killpg(one.process.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_GRACE_S
        for one in running:
            try:
                one.process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(one.process.pid, signal.SIGKILL)
                one.process.wait()
