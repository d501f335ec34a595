"""The output of a run on disk: its lock, the work folder that shards are packed in, and the commit.

Shards are packed in `{output_prefix}.work/`. When all are whole their files are moved to their places, and the
manifests are written last. Whatever moment a run is stopped at, the next one finds either the old dataset, or a work
folder that it can go on from.
"""

from __future__ import annotations

import contextlib
import fcntl
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
from ascend_cpt.files import write_text

logger = logging.getLogger(__name__)

_RUN_FILE = "run.json"


@contextlib.contextmanager
def lock_output(settings: PreprocessSettings) -> Iterator[None]:
    """Make the output folder and lock the shards that this run does: two runs on one shard would overwrite each
    other's files.

    The locks are on bytes of a lock file, one per shard, so that runs on different `--sub-range`s go together.

    Raises:
        DataError: the folder cannot be written to, or another run holds one of the locks.
    """
    path = Path(f"{settings.output_prefix}.lock")
    first, after = settings.sub_range or (0, settings.num_shards)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise DataError(f"{path.parent}: the output folder cannot be written to: {error.strerror}") from error
    with file:
        try:
            # A run of other settings may have another number of shards: a run of all shards locks every possible
            # number.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, after - first if settings.sub_range else 0, first)
            # The holder before may have removed the file between our opening and our locking it.
            is_ours = path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except (BlockingIOError, PermissionError, FileNotFoundError):
            is_ours = False
        if not is_ours:
            raise DataError(
                f"{settings.output_prefix}: another run is writing this output (it holds {path}); wait for its end"
            )
        try:
            yield
        finally:
            if settings.sub_range is None:
                path.unlink(missing_ok=True)


def find_finished(settings: PreprocessSettings, identity: Identity) -> list[Manifest]:
    """Return the datasets that are there already when they are what this run would make; empty when some are not there.

    Raises:
        DataError: what is there differs or is damaged, and it is not to be overwritten.
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
            logger.info("%s: replacing the dataset that is here (%s)", settings.output_prefix, error)
            return []
        raise DataError(
            f"{present[0]}: a dataset is here already and is not what this run makes ({error}); "
            "choose another --output-prefix, or replace it with --overwrite"
        ) from error
    if len(present) < len(paths):
        return []  # nothing is there, or a run was stopped between two manifests and its work folder still is
    shutil.rmtree(_work_folder(settings.output_prefix), ignore_errors=True)
    return manifests


def open_work_folder(settings: PreprocessSettings, identity: Identity) -> Path:
    """Return the work folder, with what a stopped run of the same identity left in it.

    Raises:
        DataError: a stopped run of another identity left one and it is not to be overwritten; or it cannot be written.
    """
    work = _work_folder(settings.output_prefix)
    run_file = work / _RUN_FILE
    try:
        if run_file.exists():
            difference = describe_difference(json.loads(run_file.read_text(encoding="utf-8")), identity)
            if not difference:
                return work
            if not settings.overwrite:
                raise DataError(
                    f"{work}: a stopped run left this, and this run cannot go on from it ({difference}); "
                    "run the earlier command to its end, or discard its work with --overwrite"
                )
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        write_text(run_file, json.dumps(identity, indent=1))
    except OSError as error:
        raise DataError(f"{work}: cannot be written: {error.strerror}") from error
    return work


def load_finished_shards(settings: PreprocessSettings, tasks: Sequence[ShardTask]) -> dict[int, ShardResult]:
    """Results, by shard number, of the shards that are committed and whose files are as they were written."""
    finished = {}
    for task in tasks:
        result = load_result(task)
        if result is None:
            continue
        if all(_find_shard(settings, task, shard) for shard in result.shards):
            finished[task.number] = result
        else:
            logger.warning("shard %d was finished, but its files are damaged: it is done again", task.number)
    return finished


def commit(settings: PreprocessSettings, tasks: Sequence[ShardTask], manifests: Sequence[Manifest]) -> list[Manifest]:
    """Move the shard files to their places, remove what they replace, write the manifests; return these."""
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
    """The shards of each key's dataset: those of the shards, or for an indexed dataset one that is joined of them.

    The shards' parts stay until the end of the run, so that joining can be done again.
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
    """Whether the files of a shard are whole, each in the shard's folder or already in its place."""
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
    """Remove shard files of an earlier dataset: MindFormers would read them along with ours."""
    stale = re.compile(re.escape(prefix.name) + r"\.(mindrecord\d+(\.db)?|bin|idx)")
    for path in prefix.parent.iterdir():
        if stale.fullmatch(path.name) and path.name not in kept:
            path.unlink()
