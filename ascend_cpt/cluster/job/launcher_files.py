"""Files through which workers report to their node's launcher.

They record the last finished step, long work between steps, stacks on request, a deliberate stop, and the exit code
before Python and MindSpore shut down. Another file makes msrun's scheduler wait until rank 0 is about to train.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from ascend_cpt.errors import EXIT_OK, run_command

PROGRESS_FILE = "ASCEND_CPT_PROGRESS_FILE"
STOP_FILE = "ASCEND_CPT_STOP_FILE"
CONTINUE_FILE = "ASCEND_CPT_CONTINUE_FILE"
STACKS_DIR = "ASCEND_CPT_STACKS_DIR"
INTERRUPTION_CAUSE = "ASCEND_CPT_INTERRUPTION_CAUSE"
"""Variable with the reason why the launcher restarted the job, "" at a first start."""
STACKS_SIGNAL = signal.SIGUSR1
READY_NAME = "ready_to_train"
"""Name of the file for the scheduler, beside the progress file."""
_TRAINS, _ENDS = "trains", "ends"
_POLL_S = 0.1

_stacks: list[IO[str]] = []  # stays open while the process runs


def report_step(step: int, environ: Mapping[str, str] = os.environ) -> None:
    """Record that step `step` is finished. Called by one process per node. Does nothing without a launcher."""
    if name := environ.get(PROGRESS_FILE):
        _write(name, f"{step}\n")


def read_step(path: Path) -> int | None:
    """Return the last finished step, or None if no step was reported."""
    try:
        return int(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


def report_activity(activity: str, environ: Mapping[str, str] = os.environ) -> None:
    """Record what the process does until the next step ("" for nothing special). Does nothing without a launcher."""
    if name := environ.get(PROGRESS_FILE):
        _write(activity_path(name), activity)


@contextlib.contextmanager
def reporting_activity(activity: str, *, is_reporting: bool = True) -> Iterator[None]:
    """Report an activity and its end. Only one process per node reports: the one with `is_reporting`."""
    if is_reporting:
        report_activity(activity)
    yield
    if is_reporting:
        report_activity("")


def activity_path(progress_file: str | Path) -> Path:
    """Return the activity file that belongs to a progress file."""
    return Path(f"{progress_file}.activity")


def report_stacks_on_request(rank: int, environ: Mapping[str, str] = os.environ) -> None:
    """Let the launcher signal for the Python stacks of all threads, even while the main thread is blocked."""
    if not (folder := environ.get(STACKS_DIR)) or _stacks:
        return
    file = stacks_path(Path(folder), rank).open("w", encoding="utf-8")
    _stacks.append(file)
    faulthandler.register(STACKS_SIGNAL, file=file, all_threads=True)


def stacks_path(folder: Path, rank: int) -> Path:
    """Return the file to which a worker writes its stacks. The file exists once the worker accepts requests."""
    return folder / f"stacks_{rank}.txt"


def report_own_stop(environ: Mapping[str, str] = os.environ) -> None:
    """Record that the run stops deliberately (a guard, an alarm), so a restart would stop at the same point.

    Any process may call this before it exits. Does nothing without a launcher.
    """
    if name := environ.get(STOP_FILE):
        Path(name).touch()


def run_worker(main: Callable[[], int | None], environ: Mapping[str, str] = os.environ) -> int:
    """Run a worker's `main` as `run_command` does, and record the exit code for the launcher, if there is one.

    MindSpore may crash during the shutdown that follows. The launcher then uses this code instead of the signal.
    """
    try:
        code = run_command(main)
    except SystemExit as error:  # argparse: --help or an invalid argument
        if isinstance(error.code, str):
            raise  # Python prints the message and exits with 1
        code = error.code or EXIT_OK
    rank = environ.get("RANK_ID", "")
    if (folder := environ.get(STACKS_DIR)) and rank and environ.get("MS_ROLE") != "MS_SCHED":
        _write(result_path(Path(folder), int(rank)), f"{code}\n")
    return code


def read_result(folder: Path, rank: int) -> int | None:
    """Return the exit code that a worker recorded, or None if the worker did not reach its end."""
    try:
        return int(result_path(folder, rank).read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


def result_path(folder: Path, rank: int) -> Path:
    """Return the file in which a worker records its exit code."""
    return folder / f"result_{rank}"


def request_continuation(environ: Mapping[str, str] = os.environ) -> bool:
    """Ask the launcher to restart the job once all workers have succeeded. Return whether there is a launcher.

    Called by every process of the job.
    """
    name = environ.get(CONTINUE_FILE)
    if name:
        Path(name).touch()
    return bool(name)


def report_ready(environ: Mapping[str, str] = os.environ, *, trains: bool = True) -> None:
    """Record that the data and checkpoint are ready, and whether the job trains. Rank 0 calls this before training.

    Does nothing without a launcher.
    """
    if name := environ.get(PROGRESS_FILE):
        _write(Path(name).with_name(READY_NAME), _TRAINS if trains else _ENDS)


def wait_until_ready(environ: Mapping[str, str] = os.environ) -> bool:
    """Wait until rank 0, on the same node, calls `report_ready`. Return whether the job trains.

    If rank 0 never reports, the launcher ends this process.
    """
    if not (name := environ.get(PROGRESS_FILE)):
        return True
    path = Path(name).with_name(READY_NAME)
    while not path.exists():
        time.sleep(_POLL_S)
    return path.read_text(encoding="ascii") == _TRAINS


def _write(path: str | Path, text: str) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="ascii") as file:
        file.write(text)
    os.replace(temporary, path)
