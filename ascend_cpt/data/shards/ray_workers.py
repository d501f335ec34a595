"""Packs shards as Ray tasks, on one machine or on several with a shared file system."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ascend_cpt
from ascend_cpt.data.shards.pack import ShardResult, pack_shard
from ascend_cpt.data.shards.task import Progress, ShardTask
from ascend_cpt.errors import DataError

_MAX_RETRIES = 5
_POLL_S = 1.0
# MindSpore fails with the protobuf implementation that Ray selects.
_WORKER_VARIABLES = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "TOKENIZERS_PARALLELISM": "false"}


def run_shards_on_ray(
    tasks: Sequence[ShardTask], address: str | None, on_progress: Callable[[Progress], None]
) -> dict[int, ShardResult]:
    """Pack the shards on the Ray cluster at `address` (default: a new local one). Return results by shard index.

    Ray schedules one shard per core and retries shards from lost workers or nodes. Progress is reported per finished
    shard. The input, tokenizer and output must be at the same paths on all nodes.

    Raises:
        DataError: Ray is not installed or cannot be reached, a shard failed, or a shard was lost too often.
    """
    try:
        import ray
    except ImportError as error:
        advice = "install it with: bash -c 'source scripts/python_env.sh && ensure_env ray'"
        raise DataError(f"--engine ray: Ray is not installed; {advice}") from error
    variables = _WORKER_VARIABLES | {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    environment = {"env_vars": variables, "py_modules": [os.path.dirname(ascend_cpt.__file__)]}
    was_running = ray.is_initialized()
    try:
        ray.init(address=address, ignore_reinit_error=True, runtime_env=environment, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise DataError(f"--ray-address {address}: cannot connect to a Ray cluster ({error})") from error
    try:
        return _run(ray, tasks, on_progress)
    finally:
        if not was_running:
            ray.shutdown()


def _run(ray: Any, tasks: Sequence[ShardTask], on_progress: Callable[[Progress], None]) -> dict[int, ShardResult]:
    remote = ray.remote(num_cpus=1, max_retries=_MAX_RETRIES, scheduling_strategy="SPREAD")(_pack)
    pending = {remote.remote(_make_absolute(task)): task for task in tasks}
    results: dict[int, ShardResult] = {}
    done = Progress(weight=0, num_documents=0, num_tokens=0)
    while pending:
        finished, _ = ray.wait(list(pending), timeout=_POLL_S)
        for reference in finished:
            task = pending.pop(reference)
            try:
                result = results[task.number] = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                raise DataError(
                    f"shard {task.number} failed {_MAX_RETRIES + 1} times because its worker or node died ({error}); "
                    "finished shards are kept: run the same command again"
                ) from error
            done = Progress(
                weight=done.weight + sum(span.weight for span in task.spans),
                num_documents=done.num_documents + result.shards[0].num_documents,
                num_tokens=done.num_tokens + sum(shard.num_tokens for shard in result.shards),
            )
        on_progress(done)
    return results


def _pack(task: ShardTask) -> ShardResult:
    return pack_shard(task, lambda progress: None)


def _make_absolute(task: ShardTask) -> ShardTask:
    """Return the task with absolute paths, because workers have a different working directory."""

    def absolute(path: str | Path) -> str:
        return os.path.abspath(path)

    spans = tuple(
        dataclasses.replace(span, file=dataclasses.replace(span.file, path=absolute(span.file.path)))
        for span in task.spans
    )
    tokenizer = dataclasses.replace(task.tokenizer, path=Path(absolute(task.tokenizer.path)))
    return dataclasses.replace(
        task,
        spans=spans,
        tokenizer=tokenizer,
        folder=Path(absolute(task.folder)),
        dropped=None if task.dropped is None else Path(absolute(task.dropped)),
    )
