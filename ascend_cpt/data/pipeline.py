"""The preprocessing pipeline: finds the input, splits it into shards, packs them in worker processes and commits."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt import __version__
from ascend_cpt.data import workspace
from ascend_cpt.data.contamination import write_contamination
from ascend_cpt.data.identity import Identity, hash_identity, make_identity
from ascend_cpt.data.packed.manifest import Manifest, Shard, SourceFile
from ascend_cpt.data.packed.packing import RowLayout
from ascend_cpt.data.packed.shard_writers import MINDRECORD
from ascend_cpt.data.preview import preview_texts
from ascend_cpt.data.readers.formats import ReadOptions, load_reader
from ascend_cpt.data.readers.formats.base import DEFAULT_MAX_RECORD_BYTES
from ascend_cpt.data.readers.handlers import (
    Handler,
    describe_handler,
    is_built_in,
    joins_records,
    load_handler,
    needed_columns,
)
from ascend_cpt.data.readers.input_files import InputFile, find_input_files, fingerprint_file
from ascend_cpt.data.readers.spans import split_input
from ascend_cpt.data.rejects import add_counts, check_rejects, write_rejects
from ascend_cpt.data.selection.choose_documents import Selection, make_selection, select_documents
from ascend_cpt.data.selection.datatrove_filters import check_installed
from ascend_cpt.data.settings import PreprocessSettings
from ascend_cpt.data.shards.batches import INDEXED_FORMAT
from ascend_cpt.data.shards.documents import LISTING_FILE
from ascend_cpt.data.shards.pack import ShardResult, pack_shard
from ascend_cpt.data.shards.progress import ProgressReporter
from ascend_cpt.data.shards.ray_workers import run_shards_on_ray
from ascend_cpt.data.shards.task import ShardTask
from ascend_cpt.data.shards.workers import run_shards
from ascend_cpt.data.tokenizing.base import TokenizerFile
from ascend_cpt.data.tokenizing.engine_choice import EngineChoice, choose_engine
from ascend_cpt.data.tokenizing.files import open_tokenizer
from ascend_cpt.errors import DataError

logger = logging.getLogger(__name__)

_VERSIONED = ("mindspore", "numpy", "pyarrow", "orjson", "tokenizers", "gigatoken", "sentencepiece", "tiktoken")

_LARGE_INPUT_BYTES = 1 << 30
"""Size of the input from which more parts pay off."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A run's input, tokenizer and selection, and the identity of the dataset that the run creates."""

    files: list[InputFile]
    handler: Handler
    options: ReadOptions
    tokenizer: TokenizerFile
    selection: Selection
    identity: Identity


def prepare(settings: PreprocessSettings) -> Preparation:
    """Find the input files, compute their content fingerprints, and open the tokenizer. Writes nothing.

    Raises:
        DataError: there is no input, or the handler, tokenizer, evaluation items or filter file are unusable.
    """
    files = find_input_files(settings.inputs, only_format=settings.input_format)
    handler = load_handler(settings.handler_name)
    options = _make_read_options(settings, handler)
    tokenizer = open_tokenizer(
        settings.tokenizer_type,
        settings.tokenizer_path,
        eod_token=settings.eod_token,
        parse_control=settings.parse_special_tokens,
    )
    if settings.append_bos and tokenizer.info.bos_id is None:
        raise DataError(f"--append-bos: the tokenizer {settings.tokenizer_path} has no BOS token")
    selection = make_selection(settings)
    identity = make_identity(
        settings,
        describe_handler(handler),
        _describe_sources(files),
        tokenizer.info,
        None if selection.filters is None else selection.filters.describe(),
        files[0].format if any(file.is_format_named for file in files) else None,
        decontaminate=None if selection.decontamination is None else selection.decontamination.describe(),
        minhash=None if selection.minhash is None else selection.minhash.describe(),
    )
    return Preparation(
        files=files, handler=handler, options=options, tokenizer=tokenizer, selection=selection, identity=identity
    )


def preprocess(settings: PreprocessSettings, *, fork: bool = False) -> list[Manifest]:
    """Pack the input into one dataset per key and return their manifests.

    With `sub_range`, only those shards are packed and no manifest is written. With `fork`, workers are forked from this
    process, which starts them faster but is only safe if the process has no other threads and no MindSpore.

    A complete dataset with the same input and settings is reused.

    Raises:
        DataError: the input is bad, there are too many bad records, or existing output differs.
    """
    # There is one process per core, with which additional library threads would compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    prepared = prepare(settings)
    files, handler, options = prepared.files, prepared.handler, prepared.options
    tokenizer, selection, identity = prepared.tokenizer, prepared.selection, prepared.identity
    fork = fork and is_built_in(handler)
    with workspace.lock_output(settings):
        finished = workspace.find_finished(settings, identity)
        if finished:
            logger.info("%s: already complete; reusing it", settings.output_prefix)
            return finished
        if selection.filters is not None:
            check_installed(selection.filters)
        if files[0].format == INDEXED_FORMAT:
            if settings.selection_flags:
                raise DataError(
                    f"{', '.join(settings.selection_flags)}: need text, but the input is already tokenized; remove them"
                )
            engine = EngineChoice(name="none", version="", check="the input holds ids")
        else:
            sample = preview_texts(files, handler, settings.json_keys, options)
            engine = choose_engine(tokenizer, settings.tokenizer_engine, sample)
            logger.info("tokenizing with %s %s (%s)", engine.name, engine.version, engine.check)
        _note_parts(settings, files)
        work = workspace.open_work_folder(settings, identity)
        tasks = _make_tasks(settings, identity, files, options, tokenizer, engine, work)
        tasks = select_documents(settings, tasks, selection, work, fork)
        if settings.sub_range is not None:
            _run_shards(settings, tasks[slice(*settings.sub_range)], fork)
            logger.info(
                "shards %d to %d are packed; when all shards are packed, run the command without --sub-range",
                *_inclusive(settings.sub_range),
            )
            return []
        results = _run_shards(settings, tasks, fork)
        rejects = write_rejects(settings.output_prefix, results, [task.folder / LISTING_FILE for task in tasks])
        write_contamination(settings.output_prefix, tasks, selection)
        check_rejects(settings.output_prefix, rejects, results, settings.max_bad_fraction)
        shards = workspace.join_shards(settings, tasks, results)
        manifests = _make_manifests(settings, identity, tokenizer, engine, results, shards)
        return workspace.commit(settings, tasks, manifests)


def _note_parts(settings: PreprocessSettings, files: Sequence[InputFile]) -> None:
    """Suggest --n-subs if it would save time."""
    num_bytes = sum(file.size_bytes for file in files)
    if settings.num_shards < settings.workers and num_bytes > _LARGE_INPUT_BYTES:
        logger.info(
            "note: only %d of %d workers are used for %.1f GB, one per part; --n-subs %d would use all",
            settings.num_shards,
            settings.workers,
            num_bytes / 1e9,
            settings.workers,
        )


def _make_read_options(settings: PreprocessSettings, handler: Handler) -> ReadOptions:
    return ReadOptions(
        columns=needed_columns(handler, settings.json_keys),
        txt_documents=settings.txt_documents,
        keep_blank_lines=joins_records(handler),
        max_record_bytes=settings.max_record_bytes or DEFAULT_MAX_RECORD_BYTES,
    )


def _describe_sources(files: Sequence[InputFile]) -> tuple[SourceFile, ...]:
    return tuple(
        SourceFile(path=file.name, size_bytes=file.size_bytes, fingerprint=fingerprint_file(file)) for file in files
    )


def _inclusive(sub_range: tuple[int, int]) -> tuple[int, int]:
    return sub_range[0], sub_range[1] - 1


def _make_tasks(
    settings: PreprocessSettings,
    identity: Identity,
    files: Sequence[InputFile],
    options: ReadOptions,
    tokenizer: TokenizerFile,
    engine: EngineChoice,
    work: Path,
) -> list[ShardTask]:
    extents = [load_reader(file.format).measure(file, options) for file in files]
    layout = RowLayout(
        seq_length=settings.seq_length,
        pad_id=tokenizer.info.pad_id,
        eod_id=tokenizer.info.eod_id if settings.append_eod else None,
        bos_id=tokenizer.info.bos_id if settings.append_bos else None,
        drop_tail=settings.tail == "drop",
    )
    run = hash_identity(identity)
    # MindFormers sorts file names as strings, so zero-padding keeps the order.
    width = len(str(settings.num_shards - 1))
    prefixes = [os.path.basename(settings.dataset_prefix(key)) for key in settings.json_keys]
    return [
        ShardTask(
            number=number,
            run=run,
            spans=tuple(spans),
            folder=work / f"sub-{number:0{width}d}",
            file_names=tuple(
                f"{prefix}.mindrecord{number:0{width}d}" if settings.output_format == MINDRECORD else f"{prefix}.bin"
                for prefix in prefixes
            ),
            keys=settings.json_keys,
            handler_name=settings.handler_name,
            read_options=options,
            tokenizer=tokenizer,
            engine=engine,
            layout=layout,
            output_format=settings.output_format,
            packing=settings.packing,
            limits_tokenizer=settings.max_record_bytes is None,
        )
        for number, spans in enumerate(split_input(files, extents, settings.num_shards))
    ]


def _run_shards(settings: PreprocessSettings, tasks: Sequence[ShardTask], fork: bool) -> list[ShardResult]:
    """Pack the shards that are not finished yet. Return the results of all shards in order."""
    results = workspace.load_finished_shards(settings, tasks)
    if results:
        logger.info("%d of %d shards are already packed and are kept", len(results), len(tasks))
    todo = [task for task in tasks if task.number not in results]
    progress = ProgressReporter(sum(span.weight for task in todo for span in task.spans))
    begin_s = time.monotonic()
    try:
        if settings.engine == "ray" and todo:
            results |= run_shards_on_ray(todo, settings.ray_address, progress.show)
        else:
            results |= run_shards(pack_shard, todo, settings.workers, progress.show, fork=fork)
    finally:
        progress.close()
    num_tokens = sum(shard.num_tokens for task in todo for shard in results[task.number].shards)
    elapsed_s = time.monotonic() - begin_s
    logger.info("packed %d tokens in %.1f s (%.2f Mtok/s)", num_tokens, elapsed_s, num_tokens / elapsed_s / 1e6)
    return [results[task.number] for task in tasks]


def _make_manifests(
    settings: PreprocessSettings,
    identity: Identity,
    tokenizer: TokenizerFile,
    engine: EngineChoice,
    results: Sequence[ShardResult],
    shards: Sequence[tuple[Shard, ...]],
) -> list[Manifest]:
    versions = {"ascend_cpt": __version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _VERSIONED}
    return [
        Manifest(
            key=key,
            output_format=settings.output_format,
            seq_length=settings.seq_length if settings.output_format == MINDRECORD else None,
            tokenizer=tokenizer.info,
            shards=shards[k],
            packing=settings.packing,
            sources=tuple(SourceFile(**source) for source in identity["sources"]),
            num_records=sum(result.num_records for result in results),
            num_filtered=sum(result.num_filtered for result in results),
            rejected=add_counts(result.rejected for result in results),
            left_out=add_counts(result.left_out for result in results),
            settings=identity["settings"],
            engine=engine.to_record(),
            versions=versions,
        )
        for k, key in enumerate(settings.json_keys)
    ]
