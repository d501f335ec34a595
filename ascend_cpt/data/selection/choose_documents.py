"""Selects documents to drop (duplicates, filters) in passes over the shards before packing."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from ascend_cpt.data.selection.datatrove_filters import FilterSettings, export_shard, filter_documents, make_text_folder
from ascend_cpt.data.selection.exact_duplicates import KIND, drop_duplicates, hash_shard
from ascend_cpt.data.settings import PreprocessSettings
from ascend_cpt.data.shards.documents import with_dropped
from ascend_cpt.data.shards.progress import ProgressReporter
from ascend_cpt.data.shards.task import ShardTask
from ascend_cpt.data.shards.workers import Job, run_shards
from ascend_cpt.errors import DataError
from ascend_cpt.files import write_text

logger = logging.getLogger(__name__)

_DONE_FILE = "done.json"


def select_documents(
    settings: PreprocessSettings, tasks: Sequence[ShardTask], filters: FilterSettings | None, work: Path, fork: bool
) -> list[ShardTask]:
    """Return the tasks with their lists of dropped documents. Reuse a selection completed by an earlier run.

    Raises:
        DataError: the input is bad, datatrove failed, or the work folder cannot be written.
    """
    if not settings.selects:
        return list(tasks)
    folder = work / "selection"
    kinds = ((KIND,) if settings.drop_duplicates else ()) + (() if filters is None else filters.kinds)
    tasks = with_dropped(tasks, folder, kinds)
    done = folder / _DONE_FILE
    try:
        if done.exists() and json.loads(done.read_text(encoding="utf-8")) == tasks[0].run:
            return tasks
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if settings.drop_duplicates:
            logger.info("finding duplicates")
            _run_on_shards(settings, tasks, hash_shard, fork)
            drop_duplicates(tasks, kinds.index(KIND))
        if filters is not None:
            logger.info("filtering with datatrove")
            make_text_folder(tasks[0])
            _run_on_shards(settings, tasks, export_shard, fork)
            filter_documents(tasks, filters, settings.workers, len(kinds) - len(filters.kinds))
        write_text(done, json.dumps(tasks[0].run))
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from error
    return tasks


def _run_on_shards(settings: PreprocessSettings, tasks: Sequence[ShardTask], job: Job[None], fork: bool) -> None:
    progress = ProgressReporter(sum(span.weight for task in tasks for span in task.spans))
    try:
        run_shards(job, tasks, settings.workers, progress.show, fork=fork)
    finally:
        progress.close()
