"""Makes a tiny packed dataset: the first rows of the user's data mapped to a small vocabulary, or random documents."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.packed.manifest import Manifest, check_shards, load_manifest, manifest_path, write_manifest
from ascend_cpt.data.packed.megatron_rows import MmapRows
from ascend_cpt.data.packed.mindrecord import MindRecordWriter, iter_rows
from ascend_cpt.data.packed.mindrecord_writer import INDEX_SUFFIX
from ascend_cpt.data.packed.shard_writers import MINDRECORD, MMAP, make_shard
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import DataError

Rows = npt.NDArray[np.int32]
MEAN_DOCUMENTS_PER_ROW = 4
FIRST_ID = 2  # the ids below this are end-of-document and padding
BYTES_PER_TOKEN = 4  # assumed in the manifest, because there is no text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The small vocabulary, in which ids from 2 up are ordinary tokens."""

    size: int
    eod_id: int = 0
    pad_id: int = 1


def make_dataset(
    source: str, prefix: Path, *, num_rows: int, seq_length: int, vocabulary: Vocabulary, seed: int
) -> Manifest:
    """Write a dataset of `num_rows` rows of `seq_length` + 1 ids at `prefix` and return its manifest.

    Args:
        source: The user's dataset. If it does not exist, random documents are used.
        prefix: Prefix of the new dataset.
        num_rows: Rows to write.
        seq_length: Trained tokens per row.
        vocabulary: The small vocabulary to which ids are mapped.
        seed: Seed of the random documents.

    Raises:
        DataError: when the user's dataset exists but is damaged.
    """
    rows = read_user_rows(source, num_rows, seq_length, vocabulary)
    origin = source
    if rows is None or not len(rows):
        rows, origin = draw_rows(prefix.name, num_rows, seq_length, vocabulary, seed), "random documents"
    # Shorter datasets are repeated.
    rows = np.resize(rows, (num_rows, seq_length + 1)).astype(np.int32)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    path = prefix.with_name(f"{prefix.name}.mindrecord")
    writer = MindRecordWriter(path)
    writer.write(rows)
    writer.close()
    num_documents = max(1, int((rows == vocabulary.eod_id).sum()))
    shard = make_shard(
        path,
        path.with_name(path.name + INDEX_SUFFIX),
        num_rows=num_rows,
        num_tokens=rows.size,
        num_documents=num_documents,
        text_bytes=rows.size * BYTES_PER_TOKEN,
    )
    tokenizer = TokenizerInfo(
        type="folded",
        name=f"ids modulo {vocabulary.size}",
        fingerprint=hashlib.sha256(f"folded {vocabulary.size}".encode()).hexdigest(),
        vocab_size=vocabulary.size,
        eod_id=vocabulary.eod_id,
        pad_id=vocabulary.pad_id,
    )
    manifest = Manifest(
        key="text",
        output_format=MINDRECORD,
        seq_length=seq_length,
        tokenizer=tokenizer,
        shards=(shard,),
        settings={"append_eod": True, "origin": origin},
    )
    return write_manifest(manifest, manifest_path(prefix))


def read_user_rows(source: str, num_rows: int, seq_length: int, vocabulary: Vocabulary) -> Rows | None:
    """Return up to `num_rows` mapped and truncated rows of the user's dataset, or None if there is no dataset.

    Raises:
        DataError: when the dataset is damaged.
    """
    try:
        manifest = load_manifest(source)
    except DataError:
        if has_dataset(source):
            raise
        return None
    check_shards(manifest)
    length = seq_length + 1
    pieces: list[Rows] = []
    for rows in _iter_rows(manifest, num_rows, seq_length):
        whole = rows[:, : rows.shape[1] // length * length].reshape(-1, length)
        pieces.append(fold(whole, manifest.tokenizer.eod_id, vocabulary))
        if sum(map(len, pieces)) >= num_rows:
            break
    return np.concatenate(pieces)[:num_rows] if pieces else None


def fold(rows: Rows, eod_id: int, vocabulary: Vocabulary) -> Rows:
    """Map the rows to ids in the small vocabulary, leaving document ends unchanged.

    Padding becomes an ordinary token, because padded micro batches would be weighted differently in another layout.
    """
    ordinary = FIRST_ID + rows % (vocabulary.size - FIRST_ID)
    return np.where(rows == eod_id, vocabulary.eod_id, ordinary).astype(np.int32)


def draw_rows(name: str, num_rows: int, seq_length: int, vocabulary: Vocabulary, seed: int) -> Rows:
    """Return rows of random documents with frequent and rare tokens, as in text, so that the model can learn them."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    generator = np.random.default_rng([seed, key])
    ranks = np.arange(1, vocabulary.size - FIRST_ID + 1)
    shares = 1.0 / ranks
    shape = (num_rows, seq_length + 1)
    ids = FIRST_ID + generator.choice(len(ranks), size=shape, p=shares / shares.sum())
    ends = generator.random(shape) < MEAN_DOCUMENTS_PER_ROW / seq_length
    return np.where(ends, vocabulary.eod_id, ids).astype(np.int32)


def has_dataset(source: str) -> bool:
    """Return whether anything exists at a dataset's path. Text to be packed later has no path."""
    path = Path(source)
    return bool(source) and (path.is_file() or manifest_path(path).is_file() or path.is_dir())


def _iter_rows(manifest: Manifest, num_rows: int, seq_length: int) -> Iterator[Rows]:
    if manifest.output_format == MMAP:
        reader = MmapRows(manifest, seq_length)
        num_whole = manifest.num_tokens // (seq_length + 1)
        yield reader.read(np.arange(min(num_rows, num_whole), dtype=np.int64))
        return
    for shard in manifest.shards:
        yield from iter_rows(manifest.folder / shard.file, batch_rows=64)
