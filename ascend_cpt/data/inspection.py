"""Inspects a packed dataset: reads documents, verifies files against the manifest and computes statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.packed.manifest import Manifest, Shard, check_shards
from ascend_cpt.data.packed.megatron_indexed import DATA_SUFFIX, IndexedReader, iter_documents
from ascend_cpt.data.packed.mindrecord import iter_rows
from ascend_cpt.data.packed.packing import BEST_FIT, CONCAT, strip_padding
from ascend_cpt.data.packed.shard_writers import MINDRECORD
from ascend_cpt.errors import DataError

Ids = npt.NDArray[np.int32]

_BATCH_TOKENS = 1 << 20
_BAR_CHARS = 40


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Dataset statistics."""

    lengths: npt.NDArray[np.int64]
    """Tokens per document including EOD (with best-fit packing, of each piece of a cut document); empty without EOD."""
    token_counts: npt.NDArray[np.int64]
    """Occurrences of each id without padding, shape [vocab_size]."""

    @property
    def length_bins(self) -> list[tuple[int, int]]:
        """(smallest length, number of documents) for each bin. Bins double in width."""
        if not self.lengths.size:
            return []
        exponents = np.floor(np.log2(np.maximum(self.lengths, 1))).astype(np.int64)
        counts = np.bincount(exponents)
        return [(1 << k, int(count)) for k, count in enumerate(counts) if k >= exponents.min()]


def iter_stream(manifest: Manifest, shard: Shard) -> Iterator[Ids]:
    """Yield a shard's tokens in order, without padding, in chunks of bounded size."""
    path = manifest.folder / shard.file
    if manifest.output_format != MINDRECORD:
        reader = IndexedReader(str(path).removesuffix(DATA_SUFFIX))
        for _, documents in iter_documents(reader, 0, len(reader), _BATCH_TOKENS):
            yield documents.ids
        return
    if manifest.packing != CONCAT:
        for rows in iter_rows(path):
            yield strip_padding(rows, manifest.tokenizer.pad_id)
        return
    num_left = shard.num_tokens
    for rows in iter_rows(path):
        stream = rows.reshape(-1)[:num_left]
        num_left -= stream.size
        yield stream


def iter_shard_documents(manifest: Manifest, shard: Shard) -> Iterator[Ids]:
    """Yield a shard's documents, each with its EOD token, which the last document may lack.

    With best-fit packing, the pieces of a cut document are in non-consecutive rows, and each piece is yielded as a
    document.
    """
    if manifest.packing == BEST_FIT:
        for rows in iter_rows(manifest.folder / shard.file):
            for row in rows:
                stream = strip_padding(row[None], manifest.tokenizer.pad_id)
                ends = np.flatnonzero(stream == manifest.tokenizer.eod_id) + 1
                yield from (part for part in np.split(stream, ends) if part.size)
        return
    parts: list[Ids] = []
    for stream in iter_stream(manifest, shard):
        begin = 0
        for end in np.flatnonzero(stream == manifest.tokenizer.eod_id) + 1:
            yield np.concatenate([*parts, stream[begin:end]])
            parts, begin = [], int(end)
        parts.append(stream[begin:])
    if any(part.size for part in parts):
        yield np.concatenate(parts)


def verify(manifest: Manifest) -> None:
    """Read all files and compare them with the manifest.

    Raises:
        DataError: a file is damaged or differs from the manifest.
    """
    check_shards(manifest, checksums=True)
    for shard in manifest.shards:
        path = manifest.folder / shard.file
        if manifest.output_format == MINDRECORD:
            _verify_rows(manifest, shard, path)
        num_tokens = num_ends = 0
        for stream in iter_stream(manifest, shard):
            if stream.size and not 0 <= int(stream.min()) <= int(stream.max()) < manifest.tokenizer.vocab_size:
                raise DataError(
                    f"{path}: contains ids outside the vocabulary of {manifest.tokenizer.vocab_size}; pack the dataset "
                    "again"
                )
            num_tokens += stream.size
            num_ends += int((stream == manifest.tokenizer.eod_id).sum())
        if num_tokens != shard.num_tokens:
            raise DataError(
                f"{path}: has {num_tokens} tokens, but its manifest lists {shard.num_tokens}; pack the dataset again"
            )
        if _marks_documents(manifest) and not shard.dropped_tokens and num_ends != shard.num_documents:
            raise DataError(
                f"{path}: has {num_ends} documents, but its manifest lists {shard.num_documents}; pack the dataset "
                "again"
            )


def compute_statistics(manifest: Manifest) -> Statistics:
    """Compute document lengths and token counts for the whole dataset."""
    token_counts = np.zeros(manifest.tokenizer.vocab_size, np.int64)
    lengths: list[npt.NDArray[np.int64]] = []
    for shard in manifest.shards:
        offset, ends = 0, [np.zeros(1, np.int64)]
        for stream in iter_stream(manifest, shard):
            token_counts += np.bincount(stream, minlength=token_counts.size)
            ends.append(np.flatnonzero(stream == manifest.tokenizer.eod_id) + 1 + offset)
            offset += stream.size
        if manifest.packing == BEST_FIT:
            documents = iter_shard_documents(manifest, shard)
            ends = [np.cumsum([0, *(document.size for document in documents)], dtype=np.int64)]
        lengths.append(np.diff(np.concatenate(ends)))
    marked = np.concatenate(lengths) if _marks_documents(manifest) else np.empty(0, np.int64)
    return Statistics(lengths=marked, token_counts=token_counts)


def format_histogram(statistics: Statistics) -> str:
    """Return a text histogram of document lengths."""
    bins = statistics.length_bins
    if not bins:
        return "document lengths are unknown (packed without EOD)"
    most = max(count for _, count in bins)
    lines = [
        f"{smallest:>9}-{2 * smallest - 1:<9} {count:>9} {'#' * -(-_BAR_CHARS * count // most)}"
        for smallest, count in bins
    ]
    return "\n".join(["   tokens in document  documents", *lines])


def draw_histograms(statistics: Statistics, path: Path) -> None:
    """Plot document lengths and token frequencies by rank in a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    bins = statistics.length_bins
    left.bar([str(smallest) for smallest, _ in bins], [count for _, count in bins])
    left.set(xlabel="tokens in document (at least)", ylabel="documents", title="Document lengths")
    left.tick_params(axis="x", rotation=60)
    counts = np.sort(statistics.token_counts[statistics.token_counts > 0])[::-1]
    right.loglog(np.arange(1, counts.size + 1), counts)
    right.set(
        xlabel="rank", ylabel="occurrences", title=f"{counts.size} of {statistics.token_counts.size} token ids occur"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise DataError(f"{path}: the plot cannot be written: {error.strerror}") from error
    finally:
        plt.close(figure)


def _marks_documents(manifest: Manifest) -> bool:
    """Return whether EOD occurs exactly at the end of each document."""
    return bool(manifest.settings.get("append_eod")) and not manifest.settings.get("parse_special_tokens")


def _verify_rows(manifest: Manifest, shard: Shard, path: Path) -> None:
    assert manifest.seq_length is not None
    row_tokens, num_rows, last = manifest.row_tokens, 0, np.empty(0, np.int32)
    for rows in iter_rows(path):
        if rows.dtype != np.int32 or rows.shape[1:] != (row_tokens,):
            raise DataError(
                f"{path}: rows have shape {rows.shape[1:]} and dtype {rows.dtype}, expected ({row_tokens},) and int32; "
                "pack the dataset again"
            )
        num_rows += len(rows)
        last = rows[-1]
    if num_rows != shard.num_rows:
        raise DataError(f"{path}: has {num_rows} rows, but its manifest lists {shard.num_rows}; pack the dataset again")
    if shard.tail_tokens and (last[shard.tail_tokens :] != manifest.tokenizer.pad_id).any():
        raise DataError(f"{path}: the last row is not padded after {shard.tail_tokens} tokens; pack the dataset again")
