"""Selects documents to drop (duplicates, overlaps with evaluation items, filters) in passes over the shards.

The stages run before packing, one after the other. A later stage does not see the documents dropped by an earlier one.
Once a stage has a marker, the next run does not repeat it; before, the next run keeps the files of finished shards.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ascend_cpt.data.selection import decontamination, exact_duplicates, near_duplicates
from ascend_cpt.data.selection.datatrove_filters import (
    FilterSettings,
    export_shard,
    filter_documents,
    load_filters,
    make_text_folder,
)
from ascend_cpt.data.selection.decontamination import Decontamination
from ascend_cpt.data.selection.evaluation_items import find_evaluation_files
from ascend_cpt.data.selection.near_duplicates import MinhashConfig
from ascend_cpt.data.selection.words.compiled import build_library
from ascend_cpt.data.settings import PreprocessSettings
from ascend_cpt.data.shards.documents import forget_dropped, with_dropped
from ascend_cpt.data.shards.progress import ProgressReporter
from ascend_cpt.data.shards.task import ShardTask
from ascend_cpt.data.shards.workers import Job, run_shards
from ascend_cpt.errors import DataError
from ascend_cpt.files import write_text

logger = logging.getLogger(__name__)

_RUN_FILE = "run.json"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is dropped, in this order."""

    drops_duplicates: bool = False
    decontamination: Decontamination | None = None
    filters: FilterSettings | None = None
    minhash: MinhashConfig | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of dropped documents."""
        return (
            *((exact_duplicates.KIND,) if self.drops_duplicates else ()),
            *((decontamination.KIND,) if self.decontamination is not None else ()),
            *(self.filters.kinds if self.filters is not None else ()),
            *((near_duplicates.KIND,) if self.minhash is not None else ()),
        )


def make_selection(settings: PreprocessSettings) -> Selection:
    """Return what the settings select, after reading the filters and finding the evaluation items.

    Raises:
        DataError: the filters or evaluation items cannot be read, or MinHash is requested twice.
    """
    filters = None if settings.filters_path is None else load_filters(settings.filters_path)
    if settings.drop_near_duplicates and filters is not None and filters.minhash is not None:
        raise DataError(
            f"--drop-near-duplicates: --filters {settings.filters_path} has `minhash` too; remove one of them"
        )
    decontamination = Decontamination(
        files=tuple(find_evaluation_files(settings.decontaminate)),
        key=settings.json_keys[0],
        n=settings.decontaminate_ngram,
        action=settings.decontaminate_action,
    )
    minhash = MinhashConfig(
        n_grams=settings.minhash_ngram,
        num_buckets=settings.minhash_buckets,
        hashes_per_bucket=settings.minhash_hashes,
        hash_name=settings.minhash_hash,
        precision=settings.minhash_precision,
        ideographs=settings.minhash_words == "characters",
    )
    return Selection(
        drops_duplicates=settings.drop_duplicates,
        decontamination=decontamination if settings.decontaminate else None,
        filters=filters,
        minhash=minhash if settings.drop_near_duplicates else None,
    )


def select_documents(
    settings: PreprocessSettings, tasks: Sequence[ShardTask], selection: Selection, work: Path, fork: bool
) -> list[ShardTask]:
    """Return the tasks with their lists of dropped documents. Reuse what an earlier run has completed.

    Raises:
        DataError: the input or an evaluation item is bad, datatrove failed, or the work folder cannot be written.
    """
    if not selection.kinds:
        return list(tasks)
    folder = work / "selection"
    tasks = with_dropped(tasks, folder, selection.kinds)
    try:
        _open_folder(folder, tasks[0].run)
        _Stages(settings, tasks, selection, folder, fork).run()
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from error
    return tasks


class _Stages:
    """Runs the stages that have no marker yet."""

    def __init__(
        self, settings: PreprocessSettings, tasks: Sequence[ShardTask], selection: Selection, folder: Path, fork: bool
    ) -> None:
        self._settings = settings
        self._tasks = tasks
        self._selection = selection
        self._folder = folder
        self._fork = fork

    def run(self) -> None:
        selection = self._selection
        if selection.drops_duplicates:
            self._run(exact_duplicates.KIND, self._drop_duplicates)
            exact_duplicates.remove_hashes(self._tasks)
        if selection.decontamination is not None:
            self._run(decontamination.KIND, self._decontaminate)
        if selection.filters is not None:
            self._run(selection.filters.kinds[0], self._filter, len(selection.filters.kinds))
        if selection.minhash is not None:
            self._run(near_duplicates.KIND, self._drop_near_duplicates)
            near_duplicates.remove_bands(self._tasks)

    def _run(self, kind: str, stage: Callable[[int], None], num_kinds: int = 1) -> None:
        """Run a stage with the number of its first kind, unless it is complete."""
        first = self._selection.kinds.index(kind)
        marker = self._folder / f"{first}.done"
        if marker.exists():
            return
        for number in range(first, first + num_kinds):
            forget_dropped(self._tasks, number)
        stage(first)
        write_text(marker, "")

    def _drop_duplicates(self, kind: int) -> None:
        logger.info("finding duplicates")
        self._run_on_shards(exact_duplicates.hash_shard)
        exact_duplicates.drop_duplicates(self._tasks, kind)

    def _decontaminate(self, kind: int) -> None:
        settings = self._selection.decontamination
        assert settings is not None
        library = build_library(self._folder)
        described = decontamination.build_index(settings, self._folder, library)
        logger.info("finding documents with any of %s", described)
        self._run_on_shards(partial(decontamination.match_shard, n=settings.n, library=library))
        if settings.action == decontamination.DROP:
            decontamination.drop_matches(self._tasks, kind)

    def _filter(self, kind: int) -> None:
        filters = self._selection.filters
        assert filters is not None
        logger.info("filtering with datatrove")
        make_text_folder(self._tasks[0])
        self._run_on_shards(export_shard)
        filter_documents(self._tasks, filters, self._settings.workers, kind)

    def _drop_near_duplicates(self, kind: int) -> None:
        config = self._selection.minhash
        assert config is not None
        logger.info("finding near-duplicates")
        library = build_library(self._folder)
        self._run_on_shards(partial(near_duplicates.sign_shard, config=config, library=library))
        near_duplicates.drop_near_duplicates(self._tasks, config, kind)

    def _run_on_shards(self, job: Job[None]) -> None:
        progress = ProgressReporter(sum(span.weight for task in self._tasks for span in task.spans))
        try:
            run_shards(job, self._tasks, self._settings.workers, progress.show, fork=self._fork)
        finally:
            progress.close()


def _open_folder(folder: Path, run: str) -> None:
    """Create the folder, or keep it if it belongs to the same run."""
    run_file = folder / _RUN_FILE
    if run_file.exists() and json.loads(run_file.read_text(encoding="utf-8")) == run:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_text(run_file, json.dumps(run))
