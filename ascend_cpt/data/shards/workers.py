"""Runs a job for each shard in local worker processes and reports progress."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ascend_cpt.data.shards.task import Progress, ShardTask
from ascend_cpt.errors import DataError
from ascend_cpt.processes import die_with_parent

T = TypeVar("T")
Job = Callable[[ShardTask, Callable[[Progress], None]], T]

_POLL_S = 0.2

_slots: Any = None
"""In a worker: shared memory with three numbers per shard. Each shard writes only its own, so no lock is needed, and a
killed worker cannot hold one."""


def run_shards(
    job: Job[T],
    tasks: Sequence[ShardTask],
    workers: int,
    on_progress: Callable[[Progress], None],
    *,
    fork: bool = False,
) -> dict[int, T]:
    """Run a job per shard in `workers` processes (in this process if 1). Return results by shard index.

    `on_progress` is called several times per second with the sum over the shards. With `fork`, workers inherit what is
    loaded here, such as the tokenizer. This is only safe without other threads.

    Raises:
        DataError: a shard failed or a worker was killed. Finished shards stay committed.
    """
    if workers == 1 or len(tasks) <= 1:
        return _run_here(job, tasks, on_progress)
    context = multiprocessing.get_context("fork" if fork else "spawn")
    slots = context.RawArray(ctypes.c_int64, 3 * len(tasks))
    num_processes = min(workers, len(tasks))
    pool = ProcessPoolExecutor(
        num_processes, mp_context=context, initializer=_begin_worker, initargs=(slots, os.getpid())
    )
    futures = {pool.submit(_run_shard, job, task, slot): task for slot, task in enumerate(tasks)}
    try:
        results = _collect(futures, lambda: on_progress(_sum_slots(slots)))
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed (out of memory?); the finished shards are kept: run the same command again, "
            "with fewer --workers if memory is short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    on_progress(_sum_slots(slots))
    return results


def _run_here(job: Job[T], tasks: Sequence[ShardTask], on_progress: Callable[[Progress], None]) -> dict[int, T]:
    slots = [0] * (3 * len(tasks))
    results = {}
    for slot, task in enumerate(tasks):

        def report(progress: Progress, slot: int = slot) -> None:
            _fill_slot(slots, slot, progress)
            on_progress(_sum_slots(slots))

        results[task.number] = job(task, report)
    return results


def _collect(futures: dict[Future[T], ShardTask], on_poll: Callable[[], None]) -> dict[int, T]:
    results = {}
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        for future in done:
            results[futures[future].number] = future.result()
        on_poll()
    return results


def _fill_slot(slots: Any, slot: int, progress: Progress) -> None:
    slots[3 * slot : 3 * slot + 3] = (progress.weight, progress.num_documents, progress.num_tokens)


def _sum_slots(slots: Any) -> Progress:
    return Progress(weight=sum(slots[0::3]), num_documents=sum(slots[1::3]), num_tokens=sum(slots[2::3]))


def _begin_worker(slots: Any, main_process: int) -> None:
    global _slots
    _slots = slots
    # Otherwise a remaining worker could write to the folders of the next run.
    die_with_parent(main_process)


def _run_shard(job: Job[T], task: ShardTask, slot: int) -> T:
    return job(task, lambda progress: _fill_slot(_slots, slot, progress))
