"""Finds the worker that keeps the others waiting: process states, and the Python stacks of all workers."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from ascend_cpt.cluster.job.launcher_files import STACKS_SIGNAL, stacks_path

STACKS_WAIT_S = 3.0
# Functions in which a worker waits for others after joining a collective or while reading a collective's result.
WAITING_FUNCTIONS = {
    "asnumpy",
    "all_gather",
    "all_reduce",
    "barrier",
    "barrier_world",
    "sum_over_ranks",
    "synchronize",
    "wait_for_ranks",
}
# MindSpore's function that runs a compiled graph, including the graph's collectives.
GRAPH_FUNCTION = "_exec_pip"
_STATES = {
    psutil.STATUS_STOPPED: "is stopped (SIGSTOP)",
    psutil.STATUS_TRACING_STOP: "is stopped by a debugger",
    psutil.STATUS_ZOMBIE: "has ended",
    psutil.STATUS_DEAD: "has ended",
    psutil.STATUS_DISK_SLEEP: "waits for a disk or a device",
}
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>.+)$')
_PACKAGE = "ascend_cpt/"


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """What a worker is doing. The `rank` with the smallest `priority` is the most likely cause."""

    rank: int
    priority: int
    text: str


# Priorities of the causes. Workers that wait for others are not causes.
EXTERNAL, BLOCKED, SILENT, BUSY, WAITING = range(5)


def diagnose(pids: Mapping[int, int], stacks_dir: Path) -> tuple[list[WorkerState], list[WorkerState]]:
    """Return the states of all workers and of the likely causes, both by rank. This takes a few seconds.

    Args:
        pids: Rank to process.
        stacks_dir: Folder in which the workers write their stacks.
    """
    offsets = {}
    for rank, pid in pids.items():
        path = stacks_path(stacks_dir, rank)
        if path.exists():  # otherwise, the signal would end the process
            offsets[rank] = path.stat().st_size
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, STACKS_SIGNAL)
    time.sleep(STACKS_WAIT_S)
    states = []
    for rank, pid in sorted(pids.items()):
        stack = ""
        if rank in offsets:
            with stacks_path(stacks_dir, rank).open(encoding="utf-8", errors="replace") as file:
                file.seek(offsets[rank])
                stack = file.read()
        states.append(judge(rank, read_process_state(pid), stack, has_stacks=rank in offsets))
    worst = min((state.priority for state in states), default=WAITING)
    return states, [state for state in states if state.priority == worst < WAITING]


def find_stopped(pids: Mapping[int, int]) -> list[WorkerState]:
    """Return the workers that SIGSTOP or a debugger has stopped.

    MindSpore's scheduler gives up such a worker after 30 s, long before a hang is found, and the others then fail.

    Args:
        pids: Rank to process.
    """
    stopped = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    states = [(rank, read_process_state(pid)) for rank, pid in sorted(pids.items())]
    return [judge(rank, status, "") for rank, status in states if status in stopped]


def read_process_state(pid: int) -> str:
    """Return psutil's status of a process."""
    try:
        return str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return str(psutil.STATUS_DEAD)


def judge(rank: int, status: str, stack: str, *, has_stacks: bool = True) -> WorkerState:
    """Return the state of a worker from its process state and from what faulthandler wrote."""
    if text := _STATES.get(status):
        priority = BLOCKED if status == psutil.STATUS_DISK_SLEEP else EXTERNAL
        return WorkerState(rank=rank, priority=priority, text=text)
    frames = parse_main_thread(stack)
    if not frames:
        text = "did not write its stack" if has_stacks else "runs a script that does not report stacks"
        return WorkerState(rank=rank, priority=SILENT, text=text)
    own = next((frame for frame in frames if _PACKAGE in frame[0]), None)
    where = _describe(frames[0])
    if own and own != frames[0]:
        where += f", called from {_describe(own)}"
    if any(function == GRAPH_FUNCTION for _, _, function in frames):
        return WorkerState(rank=rank, priority=WAITING, text=f"runs the compiled graph, in {where}")
    if any(function in WAITING_FUNCTIONS for _, _, function in frames):
        return WorkerState(rank=rank, priority=WAITING, text=f"waits for the others in {where}")
    return WorkerState(rank=rank, priority=BUSY, text=f"is in {where}")


def parse_main_thread(stack: str) -> list[tuple[str, int, str]]:
    """Return (file, line, function) of the main thread's frames, innermost first. This thread is written last."""
    frames: list[tuple[str, int, str]] = []
    for line in stack.splitlines():
        if match := _FRAME.match(line):
            frames.append((match["file"], int(match["line"]), match["function"]))
        elif line.startswith(("Thread ", "Current thread ")):
            frames = []
    return frames


def describe_states(states: list[WorkerState]) -> list[str]:
    """Return one line for each state, with the ranks that share it."""
    ranks: dict[str, list[int]] = {}
    for state in states:
        ranks.setdefault(state.text, []).append(state.rank)
    return [f"{format_ranks(numbers)} {_agree(text, numbers)}" for text, numbers in ranks.items()]


def format_ranks(ranks: list[int]) -> str:
    """Return "worker 3" or "workers 0-2, 5"."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    text = ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
    return f"worker{'s' if len(ranks) > 1 else ''} {text}"


def _agree(text: str, ranks: list[int]) -> str:
    if len(ranks) == 1:
        return text
    verb, space, rest = text.partition(" ")
    plurals = {"is": "are", "has": "have", "waits": "wait", "runs": "run"}
    return plurals.get(verb, verb) + space + rest.replace("its stack", "their stacks")


def _describe(frame: tuple[str, int, str]) -> str:
    file, line, function = frame
    return f"{function} ({'/'.join(Path(file).parts[-2:])}:{line})"
