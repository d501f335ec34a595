"""Checks all ids of a packed dataset made by another program and writes a manifest for it."""

from __future__ import annotations

import dataclasses
import logging
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ascend_cpt import __version__
from ascend_cpt.data.adoption.rows import RowCounts, check_file, check_vocabulary, count_all_rows, count_rows
from ascend_cpt.data.adoption.settings import AdoptSettings
from ascend_cpt.data.dataset_files import MINDRECORD_INDEX, DataFiles, find_data_files
from ascend_cpt.data.packed.manifest import Manifest, Shard, load_manifest, manifest_path, write_manifest
from ascend_cpt.data.packed.megatron_indexed import DATA_SUFFIX, INDEX_SUFFIX, IndexedReader, iter_documents
from ascend_cpt.data.packed.mindrecord_writer import COLUMN
from ascend_cpt.data.packed.shard_writers import MINDRECORD, MMAP, make_shard
from ascend_cpt.data.packed.token_stream import iter_columns
from ascend_cpt.data.tokenizing.files import open_tokenizer
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.data.tokenizing.names import HUGGING_FACE, SENTENCE_PIECE, TIKTOKEN
from ascend_cpt.data.tokenizing.reference_engines import make_reference_engine
from ascend_cpt.errors import DataError

logger = logging.getLogger(__name__)

_BATCH_TOKENS = 1 << 20
_LOG_EVERY_S = 30.0
_PREVIEW_TOKENS = 48


def adopt(settings: AdoptSettings) -> Manifest:
    """Check a packed dataset without a manifest, write its manifest and return it.

    Raises:
        DataError: the dataset is missing or unreadable, does not fit the tokenizer, or has a different manifest.
    """
    files = _find_one(settings.path)
    for path in () if files.is_indexed else files.files:
        check_file(path)
    kind = settings.tokenizer_type or _guess_type(Path(settings.tokenizer_path))
    tokenizer = open_tokenizer(kind, settings.tokenizer_path, eod_token=settings.eod_token)
    info = _choose_padding(tokenizer.info, settings.pad_id)
    if files.is_indexed and settings.seq_length is not None:
        raise DataError(
            f"--seq-length {settings.seq_length}: rows of an indexed dataset are cut in training; drop the flag"
        )
    manifest = _describe_indexed(files, info) if files.is_indexed else _describe_rows(files, info, settings)
    preview = make_reference_engine(tokenizer).decode(_read_first(files).tolist())
    logger.info("first tokens, decoded with this tokenizer (check that it is text): %r", preview)
    return _write(manifest, manifest_path(files.prefix))


def _find_one(path: Path) -> DataFiles:
    found = find_data_files(path)
    if not found:
        raise DataError(
            f"{path}: no packed dataset here; give a MindRecord file, with its {MINDRECORD_INDEX} file beside it, or "
            "the prefix of .bin and .idx files"
        )
    if len(found) > 1:
        names = ", ".join(str(files.files[0]) for files in found)
        raise DataError(f"{path}: several datasets ({names}); give a file of one of them")
    return found[0]


def _guess_type(path: Path) -> str:
    if path.is_dir():
        return HUGGING_FACE
    return TIKTOKEN if path.suffix == ".tiktoken" else SENTENCE_PIECE


def _choose_padding(info: TokenizerInfo, pad_id: int | None) -> TokenizerInfo:
    if pad_id is None:
        return info
    if pad_id == info.eod_id:
        raise DataError(
            f"--pad-id {pad_id}: is the end-of-document token, which the loss would then ignore; pack the text with "
            "tools/preprocess_data.py, or name another token with --eod-token"
        )
    if not 0 <= pad_id < info.vocab_size:
        raise DataError(f"--pad-id {pad_id}: not an id of the tokenizer, which has {info.vocab_size} entries")
    return dataclasses.replace(info, pad_id=pad_id)


def _describe_rows(files: DataFiles, info: TokenizerInfo, settings: AdoptSettings) -> Manifest:
    """Return a manifest for a MindRecord dataset."""
    first = _read_first(files)
    with _show_progress(count_all_rows(files.files) * first.size) as bar:
        counts = [
            count_rows(path, info, ignore_labels=settings.ignore_labels, on_tokens=bar.update) for path in files.files
        ]
    lengths = {count.row_tokens for count in counts if count.num_rows}
    if len(lengths) != 1:
        raise DataError(
            f"{files.files[0]}: the files have rows of {', '.join(map(str, sorted(lengths)))} ids; training needs "
            "rows of one length"
        )
    row_tokens = lengths.pop()
    seq_length = _choose_length(files.files[0], row_tokens, settings.seq_length)
    # Partly filled rows cannot be read as one stream, so their padding counts.
    pads_rows = any(count.num_padded > (1 if count.tail_tokens else 0) for count in counts)
    if pads_rows:
        num_padded = sum(count.num_padded for count in counts)
        logger.warning("%d rows are padded: token counts include their padding; the loss does not", num_padded)
    if not (num_ends := sum(count.num_ends for count in counts)):
        logger.warning("no end-of-document token %d: the number of documents is unknown", info.eod_id)
    if seq_length == row_tokens:
        logger.warning("rows of %d ids: the last token of each has no label and is not trained", row_tokens)
    manifest = Manifest(
        key=COLUMN,
        output_format=MINDRECORD,
        seq_length=seq_length,
        lacks_last_label=seq_length == row_tokens,
        tokenizer=info,
        shards=tuple(_describe_file(path, count, pads_rows) for path, count in zip(files.files, counts, strict=True)),
    )
    return _add_origin(manifest, num_ends > 0)


def _choose_length(path: Path, row_tokens: int, given: int | None) -> int:
    """Return the sequence length: the row length if that is the given length or even, otherwise one less."""
    if given in (row_tokens, row_tokens - 1):
        return given
    if given is not None:
        raise DataError(
            f"--seq-length {given}: {path} has rows of {row_tokens} ids, for a sequence length of {row_tokens - 1} or "
            f"{row_tokens}"
        )
    return row_tokens if row_tokens % 2 == 0 else row_tokens - 1


def _describe_file(path: Path, count: RowCounts, pads_rows: bool) -> Shard:
    tail_tokens = 0 if pads_rows else count.tail_tokens
    padding = count.row_tokens - tail_tokens if tail_tokens else 0
    return make_shard(
        path,
        path.with_name(path.name + MINDRECORD_INDEX),
        num_rows=count.num_rows,
        num_tokens=count.num_rows * count.row_tokens - padding,
        num_documents=count.num_ends,
        text_bytes=0,
        tail_tokens=tail_tokens,
    )


def _describe_indexed(files: DataFiles, info: TokenizerInfo) -> Manifest:
    """Return a manifest for an indexed dataset."""
    reader = IndexedReader(files.prefix)
    num_ends = num_closed = 0
    with _show_progress(int(reader.lengths.sum(dtype=np.int64))) as bar:
        for _, documents in iter_documents(reader, 0, len(reader), _BATCH_TOKENS):
            check_vocabulary(documents.ids, info, reader.data_path)
            is_end = documents.ids == info.eod_id
            num_ends += int(is_end.sum())
            begins, ends = documents.offsets[:-1], documents.offsets[1:]
            num_closed += int(is_end[ends[ends > begins] - 1].sum())
            bar.update(documents.ids.size)
    is_marked = num_closed == len(reader) == num_ends
    if not is_marked:
        logger.warning(
            "%d of %d documents end with the end-of-document token %d, which occurs %d times: training cannot tell the "
            "documents apart (cpt.document_attention); --eod-token names another token",
            *(num_closed, len(reader), info.eod_id, num_ends),
        )
    shard = make_shard(
        Path(f"{files.prefix}{DATA_SUFFIX}"),
        Path(f"{files.prefix}{INDEX_SUFFIX}"),
        num_rows=len(reader),
        num_tokens=int(reader.lengths.sum(dtype=np.int64)),
        num_documents=len(reader),
        text_bytes=0,
    )
    manifest = Manifest(key=COLUMN, output_format=MMAP, seq_length=None, tokenizer=info, shards=(shard,))
    return _add_origin(manifest, is_marked)


def _add_origin(manifest: Manifest, is_marked: bool) -> Manifest:
    """Return the manifest with provenance entries added. `is_marked` means that documents end with EOD."""
    return dataclasses.replace(
        manifest,
        settings={"adopted": True, "append_eod": is_marked},
        engine={"name": "none", "check": "adopted: ids within the vocabulary"},
        versions={"ascend_cpt": __version__, "python": platform.python_version()},
    )


def _read_first(files: DataFiles) -> np.ndarray:
    """Return the first token ids of a dataset, taken from its first row or from the start of its stream."""
    if files.is_indexed:
        return IndexedReader(files.prefix).ids[:_PREVIEW_TOKENS]
    for path in files.files:
        for row in iter_columns(path, [COLUMN]):
            return row[COLUMN]
    raise DataError(f"{files.files[0]}: has no rows")


@contextmanager
def _show_progress(num_tokens: int) -> Iterator[tqdm]:
    """Show a progress bar with rate and remaining time or, without a terminal, print a line every half minute."""
    interval_s = 0.1 if sys.stderr.isatty() else _LOG_EVERY_S
    with tqdm(
        total=num_tokens, unit="tok", unit_scale=True, mininterval=interval_s, delay=interval_s, leave=False, miniters=1
    ) as bar:
        yield bar


def _write(manifest: Manifest, path: Path) -> Manifest:
    if path.exists():
        present = load_manifest(path)
        if present.digest == manifest.digest:
            return present
        raise DataError(
            f"{path}: exists and describes other files or another tokenizer; remove it to adopt the files again"
        )
    try:
        return write_manifest(manifest, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror}; the manifest must be beside the data files"
        ) from error
