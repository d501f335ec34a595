"""Manages a run's output on disk: locking, work folder and commit.

Shards are packed in `{output_prefix}.work/`. When all are complete, their files are moved to the output folder, and the
manifests are written last. A run can be interrupted at any time: the next one finds the old dataset or a work folder
from which it can resume.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ascend_cpt.data.identity import Identity, describe_difference, identity_of
from ascend_cpt.data.packed import megatron_indexed as indexed
from ascend_cpt.data.packed.checksum import checksum_file
from ascend_cpt.data.packed.manifest import Manifest, Shard, check_shards, load_manifest, manifest_path, write_manifest
from ascend_cpt.data.packed.shard_writers import MINDRECORD, make_shard
from ascend_cpt.data.settings import PreprocessSettings
from ascend_cpt.data.shards.pack import ShardResult, load_result
from ascend_cpt.data.shards.task import ShardTask
from ascend_cpt.errors import DataError
from ascend_cpt.files import sync_file, sync_folder, write_text
from ascend_cpt.locks import take_range_lock
from ascend_cpt.strict_json import JsonError, read_json_object

logger = logging.getLogger(__name__)

_RUN_FILE = "run.json"


@contextlib.contextmanager
def lock_output(settings: PreprocessSettings) -> Iterator[None]:
    """Create the output folder and lock the shards of this run, and its datasets, against concurrent runs.

    The shard locks are byte ranges of a lock file, one byte per shard, so runs with disjoint `--sub-range`s are
    possible. With --dataset-name, runs with different prefixes can write the same dataset, so the dataset has a lock
    too. A sub-range run writes no dataset.

    Raises:
        DataError: the folder cannot be written, or another run holds one of the locks.
    """
    path = Path(f"{settings.output_prefix}.lock")
    with contextlib.ExitStack() as locks:
        if settings.sub_range is not None:
            first, after = settings.sub_range
            locks.enter_context(_hold_lock(path, settings.output_prefix, first, after - first, keep=True))
        else:
            # Lock the whole file, because a run with other settings may have more shards.
            locks.enter_context(_hold_lock(path, settings.output_prefix, 0, 0))
            for dataset in map(settings.dataset_prefix, settings.json_keys):
                locks.enter_context(_hold_lock(Path(f"{dataset}.dataset.lock"), dataset, 0, 0))
        yield


@contextlib.contextmanager
def _hold_lock(path: Path, written: str, first: int, length: int, *, keep: bool = False) -> Iterator[None]:
    """Hold a lock on bytes of a file, which is removed afterwards unless `keep`. The error names `written`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path.parent}: the output folder cannot be written to: {reason}") from error
    with file:
        try:
            risk = "do not start a second run with this output"
            is_ours = take_range_lock(file.fileno(), path, first, length, risk=risk)
            # The previous holder may have removed the file between our open and lock calls.
            is_ours = is_ours and path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            is_ours = False
        except OSError as error:
            raise DataError(f"{path}: cannot be locked: {error.strerror}") from error
        if not is_ours:
            raise DataError(f"{written}: another run is writing this output (lock file {path}); wait until it ends")
        try:
            yield
        finally:
            if not keep:
                path.unlink(missing_ok=True)


def find_finished(settings: PreprocessSettings, identity: Identity) -> list[Manifest]:
    """Return the existing datasets if all exist with the same identity, or an empty result if any is missing.

    Raises:
        DataError: an existing dataset differs or is damaged, and `overwrite` is not set.
    """
    paths = [manifest_path(settings.dataset_prefix(key)) for key in settings.json_keys]
    present = [path for path in paths if path.exists()]
    try:
        manifests = [load_manifest(path) for path in present]
        for manifest in manifests:
            check_shards(manifest)
            if difference := describe_difference(identity_of(manifest), identity):
                raise DataError(difference)
    except DataError as error:
        if settings.overwrite:
            logger.info("%s: replacing the existing dataset (%s)", settings.output_prefix, error)
            return []
        raise DataError(
            f"{present[0]}: an existing dataset differs from this run's output ({error}); "
            "choose another --output-prefix, or replace it with --overwrite"
        ) from error
    if len(present) < len(paths):
        return []  # none exists, or a run was interrupted between two manifests and its work folder exists
    shutil.rmtree(_work_folder(settings.output_prefix), ignore_errors=True)
    return manifests


def open_work_folder(settings: PreprocessSettings, identity: Identity) -> Path:
    """Return the work folder, keeping the results of an interrupted run with the same identity.

    Raises:
        DataError: the folder belongs to a run with another identity and `overwrite` is not set, or cannot be written.
    """
    work = _work_folder(settings.output_prefix)
    run_file = work / _RUN_FILE
    try:
        if run_file.exists():
            difference = _compare_run(run_file, identity)
            if not difference:
                return work
            if not settings.overwrite:
                raise DataError(
                    f"{work}: left by an interrupted run that this one cannot resume ({difference}); "
                    "run the earlier command again to finish it, or discard its work with --overwrite"
                )
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        write_text(run_file, json.dumps(identity, indent=1))
    except OSError as error:
        raise DataError(f"{work}: cannot be written: {error.strerror}") from error
    return work


def _compare_run(run_file: Path, identity: Identity) -> str:
    """Describe how the interrupted run differs from this one, or return "" if it does not."""
    try:
        return describe_difference(read_json_object(run_file), identity)
    except (JsonError, KeyError, TypeError, AttributeError):
        return f"its {run_file.name} is damaged"


def load_finished_shards(settings: PreprocessSettings, tasks: Sequence[ShardTask]) -> dict[int, ShardResult]:
    """Return the results, by shard index, of committed shards whose files match their checksums."""
    finished = {}
    for task in tasks:
        result = load_result(task)
        if result is None:
            continue
        if all(_find_shard(settings, task, shard) for shard in result.shards):
            finished[task.number] = result
        else:
            logger.warning("shard %d was finished, but its files are damaged: packing it again", task.number)
    return finished


def commit(settings: PreprocessSettings, tasks: Sequence[ShardTask], manifests: Sequence[Manifest]) -> list[Manifest]:
    """Move the shard files to the output folder, remove old files, and write and return the manifests."""
    prefixes = [Path(settings.dataset_prefix(key)) for key in settings.json_keys]
    folders = [task.folder for task in tasks] if settings.output_format == MINDRECORD else [_joined_folder(settings)]
    try:
        for prefix in prefixes:
            manifest_path(prefix).unlink(missing_ok=True)
        for prefix, manifest in zip(prefixes, manifests, strict=True):
            for folder, shard in zip(folders, manifest.shards, strict=True):
                for name in (shard.file, shard.index_file):
                    if (folder / name).exists():
                        os.replace(folder / name, prefix.parent / name)
            # The files were flushed when packed. Flush their new names before old files and manifests are changed.
            sync_folder(prefix.parent)
            _remove_stale(prefix, {name for shard in manifest.shards for name in (shard.file, shard.index_file)})
        written = [
            write_manifest(manifest, manifest_path(prefix))
            for prefix, manifest in zip(prefixes, manifests, strict=True)
        ]
    except OSError as error:
        raise DataError(f"{error.filename}: the dataset cannot be moved into place: {error.strerror}") from error
    shutil.rmtree(_work_folder(settings.output_prefix), ignore_errors=True)
    return written


def join_shards(
    settings: PreprocessSettings, tasks: Sequence[ShardTask], results: Sequence[ShardResult]
) -> list[tuple[Shard, ...]]:
    """Return the dataset files for each key: one per shard or, for an indexed dataset, all joined into one.

    The parts are kept until the end of the run, so joining can be repeated.
    """
    by_key = list(zip(*(result.shards for result in results), strict=True))
    if settings.output_format == MINDRECORD:
        return by_key
    joined = _joined_folder(settings)
    try:
        joined.mkdir(exist_ok=True)
        return [(_join_parts(joined, tasks, shards),) for shards in by_key]
    except OSError as error:
        raise DataError(f"{joined}: the parts cannot be joined: {error.strerror}") from error


def _join_parts(folder: Path, tasks: Sequence[ShardTask], shards: Sequence[Shard]) -> Shard:
    name = shards[0].file.removesuffix(indexed.DATA_SUFFIX)
    indexed.join_parts([task.folder / name for task in tasks], folder / name)
    for file in (shards[0].file, shards[0].index_file):
        sync_file(folder / file)
    counts = ("num_rows", "num_tokens", "num_documents", "text_bytes")
    return make_shard(
        folder / shards[0].file,
        folder / shards[0].index_file,
        **{count: sum(getattr(shard, count) for shard in shards) for count in counts},
    )


def _joined_folder(settings: PreprocessSettings) -> Path:
    return _work_folder(settings.output_prefix) / "joined"


def _work_folder(output_prefix: str) -> Path:
    return Path(f"{output_prefix}.work")


def _find_shard(settings: PreprocessSettings, task: ShardTask, shard: Shard) -> bool:
    """Return whether a shard's files are complete, in the shard's folder or already in the output folder."""
    folders = (task.folder, Path(settings.output_prefix).parent)
    return all(
        any(_is_whole(folder / name, size_bytes, sha256) for folder in folders)
        for name, size_bytes, sha256 in (
            (shard.file, shard.size_bytes, shard.sha256),
            (shard.index_file, shard.index_size_bytes, shard.index_sha256),
        )
    )


def _is_whole(path: Path, size_bytes: int, sha256: str) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes and checksum_file(path) == sha256


def _remove_stale(prefix: Path, kept: Iterable[str]) -> None:
    """Remove shard files from an earlier dataset, because MindFormers would also read them."""
    stale = re.compile(re.escape(prefix.name) + r"\.(mindrecord\d+(\.db)?|bin|idx)")
    for path in prefix.parent.iterdir():
        if stale.fullmatch(path.name) and path.name not in kept:
            path.unlink()
