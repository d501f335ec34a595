"""Finds documents that share n-grams of words with evaluation items.

Words are those of `words/english.py`, with each Han character as half a word. An n-gram is the shortest run of words
that begins at a given word and has at least n words. n-grams are compared by 64-bit hashes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ascend_cpt.data.readers.documents import Reject
from ascend_cpt.data.readers.input_files import InputFile, fingerprint_file
from ascend_cpt.data.selection.evaluation_items import LINES_FORMAT, read_items
from ascend_cpt.data.selection.words.compiled import load_hasher
from ascend_cpt.data.selection.words.hashing import WORD_WEIGHT, Hasher, Hashes, WindowIndex
from ascend_cpt.data.shards.documents import iter_remaining, save_dropped
from ascend_cpt.data.shards.task import Progress, ShardTask
from ascend_cpt.errors import DataError
from ascend_cpt.files import write_text, write_whole

KIND = "contaminated"
DROP, LIST = "drop", "list"
ACTIONS = (DROP, LIST)

_INDEX_FILES = ("windows.npy", "bits.npy", "owners.npy")
_REPORT_DOCUMENTS = 256
_ITEMS_FILE = "items.json"


@dataclass(frozen=True, kw_only=True)
class Decontamination:
    """The evaluation items and what is done with documents that overlap with them."""

    files: tuple[InputFile, ...]
    key: str
    """Key of the text of validation texts."""
    n: int
    """Words of an n-gram."""
    action: str
    """`drop`, or `list` to keep the documents."""

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the result, as JSON values."""
        files = [[file.name, fingerprint_file(file)] for file in self.files]
        return {"files": files, "ngram": self.n, "action": self.action}


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """A document that shares n-grams with an evaluation item."""

    place: Reject
    """Where the document is."""
    ngram: str
    """The first shared n-gram, in simplified words."""
    num_ngrams: int
    """Number of n-grams of the document that are in any item."""
    item: str
    """File and line of an item with the first n-gram."""


def build_index(settings: Decontamination, folder: Path, library: Path | None) -> str:
    """Write the n-grams of the items to `folder`, and describe them.

    Raises:
        DataError: an item cannot be read, or no item has enough words.
    """
    hasher = load_hasher(library, ideographs=True)
    items: list[str] = []
    hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    num_short = 0
    for file in settings.files:
        for where, found in _hash_items(file, settings, hasher):
            num_short += where != "" and not len(found)
            hashes.append(found)
            owners.append(np.full(len(found), len(items)))
            items.append(where)
    windows, first = np.unique(np.concatenate(hashes), return_index=True)
    names = ", ".join(dict.fromkeys(file.path for file in settings.files))
    if not len(windows):
        raise DataError(f"--decontaminate: {names}: no item has {settings.n} words; use a lower --decontaminate-ngram")
    index = WindowIndex(windows)
    arrays: tuple[npt.NDArray[Any], ...] = (index.hashes, index.bits, np.concatenate(owners)[first])
    for name, array in zip(_INDEX_FILES, arrays, strict=True):
        with write_whole(folder / name) as temporary, temporary.open("wb") as stream:
            np.save(stream, array)
    write_text(folder / _ITEMS_FILE, json.dumps(items))
    short = f"; {num_short} items have fewer than {settings.n} words and cannot be found" if num_short else ""
    return f"{len(windows)} {settings.n}-grams of {len(items)} items{short}"


def match_shard(task: ShardTask, report: Callable[[Progress], None], *, n: int, library: Path | None) -> None:
    """Write the overlapping documents next to the shard's list of dropped documents, unless they are there."""
    assert task.dropped is not None
    path = _matches_path(task.dropped)
    if path.exists():
        return
    windows, bits, _ = (np.load(path.with_name(name), mmap_mode="r") for name in _INDEX_FILES)
    index = WindowIndex(windows, bits)
    hasher = load_hasher(library, ideographs=True)
    with write_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for located in iter_remaining(task):
            words = hasher.write_words("\n\n".join(located.document.texts))
            count, window = hasher.find_windows(words, WORD_WEIGHT * n, index)
            if window is not None:
                place = (located.file.path, located.record.position, located.record.line)
                file.write(json.dumps([located.number, *place, count, *window]) + "\n")
            if located.number % _REPORT_DOCUMENTS == 0:
                report(Progress(weight=located.weight, num_documents=located.number, num_tokens=0))


def drop_matches(tasks: Sequence[ShardTask], kind: int) -> None:
    """Save the overlapping documents as dropped documents of the given kind."""
    for task in tasks:
        assert task.dropped is not None
        if numbers := [match[0] for match in _read_matches(task.dropped)]:
            save_dropped(task.dropped, np.array(numbers), kind)


def load_overlaps(tasks: Sequence[ShardTask]) -> list[Overlap]:
    """Return the overlapping documents of all shards, in order."""
    assert tasks[0].dropped is not None
    folder = tasks[0].dropped.parent
    items = json.loads((folder / _ITEMS_FILE).read_text(encoding="utf-8"))
    owners = np.load(folder / _INDEX_FILES[2])
    return [
        Overlap(
            place=Reject(file=file, position=position, line=line, kind=KIND, detail=""),
            ngram=ngram,
            num_ngrams=count,
            item=items[owners[window]],
        )
        for task in tasks
        if task.dropped is not None
        for _, file, position, line, count, ngram, window in _read_matches(task.dropped)
    ]


def _hash_items(file: InputFile, settings: Decontamination, hasher: Hasher) -> Iterator[tuple[str, Hashes]]:
    """Yield the place and n-grams of each item. The lines of a text file form one text."""
    weight = WORD_WEIGHT * settings.n
    if file.format != LINES_FORMAT:
        for item in read_items(file, settings.key):
            parts = [hasher.hash_windows(hasher.write_words(text), weight) for text in item.texts]
            yield item.where, np.concatenate(parts)
        return
    places, lines = [], []
    for item in read_items(file, settings.key):
        places.append(item.where)
        lines.append(hasher.write_words(item.texts[0]))
    found = hasher.hash_windows(b"".join(lines), weight)
    num_words: npt.NDArray[np.int64] = np.cumsum([line.count(b" ") for line in lines])
    cuts = np.searchsorted(np.arange(len(found)), num_words)
    begin = 0
    for place, cut in zip(places, cuts.tolist(), strict=True):
        if cut > begin:
            yield place, found[begin:cut]
        begin = cut


def _matches_path(dropped: Path) -> Path:
    return dropped.with_suffix(".matches")


def _read_matches(dropped: Path) -> Iterator[list[Any]]:
    with open(_matches_path(dropped), encoding="utf-8") as lines:
        yield from map(json.loads, lines)
