"""Finds near-duplicates with MinHash and keeps the first document of each cluster in input order.

Parameters and clusters are those of datatrove 0.10.1: two documents are near-duplicates if all hashes of a band of
their signatures are equal, and near-duplicates of near-duplicates are in the same cluster. datatrove keeps one document
of each cluster, not always the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.selection.hash_blocks import begin_blocks, end_blocks, iter_equal, read_num_documents, write_block
from ascend_cpt.data.selection.words.compiled import load_hasher
from ascend_cpt.data.selection.words.hashing import Hasher, Hashes, Scheme
from ascend_cpt.data.shards.documents import iter_remaining, save_dropped
from ascend_cpt.data.shards.task import Progress, ShardTask
from ascend_cpt.files import write_whole

KIND = "near-duplicate"

_SEED = 1
_PERMUTATION_RANGE = (1 << 61) - 1
_BATCH_DOCUMENTS = 1 << 10
_BLOCK_DOCUMENTS = 1 << 16
_REPORT_DOCUMENTS = 256
_MIXERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93))


@dataclass(frozen=True, kw_only=True)
class MinhashConfig:
    """MinHash parameters, with datatrove's names and defaults."""

    n_grams: int = 5
    """Words of a shingle."""
    num_buckets: int = 14
    """Bands; documents with one equal band are near-duplicates."""
    hashes_per_bucket: int = 8
    hash_name: str = "xxhash"
    """Hash function for shingles: `xxhash` or `sha1`."""
    precision: int = 64
    """Bits of the hashes: 64 or 32."""
    ideographs: bool = False
    """Whether each Han character is a word, unlike in datatrove."""

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the result, as JSON values."""
        return dict(vars(self))

    def make_scheme(self) -> Scheme:
        """Return how signatures are computed, with datatrove's random permutations."""
        generator = np.random.RandomState(_SEED)
        size = self.num_buckets * self.hashes_per_bucket
        a = generator.randint(1, _PERMUTATION_RANGE, dtype=np.uint64, size=size)
        b = generator.randint(0, _PERMUTATION_RANGE, dtype=np.uint64, size=size)
        return Scheme(self.n_grams, self.hash_name, self.precision, a, b)


def sign_shard(
    task: ShardTask, report: Callable[[Progress], None], *, config: MinhashConfig, library: Path | None
) -> None:
    """Write a shard's bands next to its list of dropped documents, unless they are there."""
    assert task.dropped is not None
    path = _bands_path(task.dropped)
    if path.exists():
        return
    hasher = load_hasher(library, ideographs=config.ideographs)
    with write_whole(path) as temporary, open(temporary, "wb") as file:
        begin_blocks(file)
        writer = _BandWriter(file, config, hasher)
        num_documents = 0
        for located in iter_remaining(task):
            writer.add(located.number, "\n\n".join(located.document.texts))
            num_documents = located.number + 1
            if located.number % _REPORT_DOCUMENTS == 0:
                report(Progress(weight=located.weight, num_documents=num_documents, num_tokens=0))
        writer.close()
        end_blocks(file, num_documents)


def drop_near_duplicates(tasks: Sequence[ShardTask], config: MinhashConfig, kind: int) -> None:
    """Find clusters among all shards' signed documents and save all but the first document of each as dropped."""
    paths = [task.dropped for task in tasks if task.dropped is not None]
    assert len(paths) == len(tasks)
    files = [_bands_path(path) for path in paths]
    ends = np.cumsum([read_num_documents(file) for file in files])
    offsets = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    clusters = Clusters(int(ends[-1]))
    for band in range(config.num_buckets):
        for first_shards, firsts, shards, numbers in iter_equal(files, band, config.num_buckets):
            clusters.join(offsets[first_shards] + firsts, offsets[shards] + numbers)
    dropped = clusters.find_others()
    for shard, (begin, end) in enumerate(zip(offsets.tolist(), ends.tolist(), strict=True)):
        part = dropped[np.searchsorted(dropped, begin) : np.searchsorted(dropped, end)]
        if len(part):
            save_dropped(paths[shard], part - begin, kind)


def remove_bands(tasks: Sequence[ShardTask]) -> None:
    """Remove the files of `sign_shard`."""
    for task in tasks:
        assert task.dropped is not None
        _bands_path(task.dropped).unlink(missing_ok=True)


class Clusters:
    """Sets of connected documents. Each document points to an earlier one of its set, or to itself."""

    def __init__(self, num_documents: int) -> None:
        self._earlier: npt.NDArray[np.int64] = np.arange(num_documents)

    def join(self, some: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> None:
        """Join the sets of pairs of documents."""
        while len(some):
            some, others = self._find_first(some), self._find_first(others)
            is_apart = some != others
            some, others = some[is_apart], others[is_apart]
            # Only the first documents of sets are changed, so that no part of a set is lost. If several sets are joined
            # to the same one, the pairs that were not used are still apart in the next round.
            np.minimum.at(self._earlier, np.maximum(some, others), np.minimum(some, others))

    def find_others(self) -> npt.NDArray[np.int64]:
        """Return the documents that are not the first of their set, in order."""
        return np.flatnonzero(self._earlier != np.arange(len(self._earlier)))

    def _find_first(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        first = self._earlier[documents]
        while not np.array_equal(first, nearer := self._earlier[first]):
            first = nearer
        self._earlier[documents] = first
        return first


class _BandWriter:
    """Computes the bands of documents and writes them in blocks."""

    def __init__(self, file: IO[bytes], config: MinhashConfig, hasher: Hasher) -> None:
        self._file = file
        self._config = config
        self._hasher = hasher
        self._scheme = config.make_scheme()
        self._signatures = np.empty((_BATCH_DOCUMENTS, len(self._scheme.a)), np.uint64)
        self._numbers: list[int] = []
        self._bands: list[tuple[Hashes, Hashes, npt.NDArray[np.int64]]] = []

    def add(self, number: int, text: str) -> None:
        """Add a document, unless it has too few words for an n-gram."""
        signature = self._hasher.compute_signature(text, self._scheme)
        if signature is None:
            return
        self._signatures[len(self._numbers)] = signature
        self._numbers.append(number)
        if len(self._numbers) == _BATCH_DOCUMENTS:
            self._hash_batch()
            if len(self._bands) * _BATCH_DOCUMENTS >= _BLOCK_DOCUMENTS:
                self._write()

    def close(self) -> None:
        """Write the rest."""
        self._hash_batch()
        self._write()

    def _hash_batch(self) -> None:
        if self._numbers:
            signatures = self._signatures[: len(self._numbers)]
            bands = signatures.reshape(-1, self._config.num_buckets, self._config.hashes_per_bucket)
            high, low = (hash_rows(bands, mixer).T for mixer in _MIXERS)
            self._bands.append((high, low, np.array(self._numbers)))
            self._numbers = []

    def _write(self) -> None:
        if self._bands:
            high, low, numbers = (np.concatenate(parts, axis=-1) for parts in zip(*self._bands, strict=True))
            write_block(self._file, high, low, numbers)
            self._bands = []


def hash_rows(rows: Hashes, mixer: np.uint64) -> Hashes:
    """Return a 64-bit hash of the numbers along the last axis."""
    result: Hashes = np.full(rows.shape[:-1], mixer)
    for k in range(rows.shape[-1]):
        result = (result ^ rows[..., k]) * mixer
        result ^= result >> np.uint64(32)
    result *= mixer
    return result ^ result >> np.uint64(29)


def _bands_path(dropped: Path) -> Path:
    return dropped.with_suffix(".bands")
