"""Exact duplicates: the first in input order is kept, for any number of shards, block size and memory limit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_cpt.data.readers.documents import Tally
from ascend_cpt.data.selection import exact_duplicates as duplicates
from ascend_cpt.data.selection import hash_blocks
from ascend_cpt.data.selection.exact_duplicates import drop_duplicates, hash_shard
from ascend_cpt.data.shards.documents import LISTING_FILE, iter_selected, with_dropped
from ascend_cpt.data.shards.task import ShardTask
from tests.selection import make_tasks


def select(folder: Path, tasks: list[ShardTask]) -> tuple[list[str], Tally]:
    (folder / "selection").mkdir()
    tasks = with_dropped(tasks, folder / "selection", ("duplicate",))
    for task in tasks:
        hash_shard(task, lambda progress: None)
    drop_duplicates(tasks, 0)
    tally = Tally()
    kept = []
    for task in tasks:
        task.folder.mkdir()
        kept += [located.document.texts[0] for located in iter_selected(task, tally)]
    tally.check()
    return kept, tally


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text("ab\n\u00e9", max_size=3), max_size=40),
    num_shards=st.integers(1, 6),
    block=st.integers(1, 9),
    pass_bytes=st.integers(1, 500),
)
def test_first_occurrence_is_kept(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], num_shards: int, block: int, pass_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("duplicates")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # slow, and not needed here
        patch.setattr(duplicates, "_BLOCK_DOCUMENTS", block)
        patch.setattr(hash_blocks, "_PASS_BYTES", pass_bytes)
        kept, tally = select(folder, make_tasks(folder, [{"text": text} for text in texts], num_shards))
    good = [text for text in texts if text]
    assert kept == list(dict.fromkeys(good))
    assert tally.dropped.get("duplicate", 0) == len(good) - len(kept)
    assert len(tally.rejects) == len(texts) - len(good)


def test_documents_are_compared_by_all_keys(tmp_path: Path) -> None:
    records = [{"a": "x", "b": "yz"}, {"a": "xy", "b": "z"}, {"a": "x", "b": "yz"}, {"a": "x", "b": "q"}]
    kept, tally = select(tmp_path, make_tasks(tmp_path, records, 1, ("a", "b")))
    assert kept == ["x", "xy", "x"] and tally.dropped == {"duplicate": 1}
    (listed,) = [json.loads(line) for line in (tmp_path / "sub-0" / LISTING_FILE).read_text().splitlines()]
    assert (listed["line"], listed["kind"]) == (3, "duplicate")
