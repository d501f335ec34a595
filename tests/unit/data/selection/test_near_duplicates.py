"""Near-duplicates: the clusters of datatrove, of which the first document in input order is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_cpt.data.readers.documents import Tally
from ascend_cpt.data.selection import hash_blocks, near_duplicates
from ascend_cpt.data.selection.near_duplicates import Clusters, MinhashConfig, drop_near_duplicates, sign_shard
from ascend_cpt.data.shards.documents import iter_selected, with_dropped
from ascend_cpt.data.shards.task import ShardTask
from tests.selection import make_tasks

REFERENCE = json.loads((Path(__file__).parents[3] / "reference/minhash/reference.json").read_text(encoding="utf-8"))


def make_config(options: dict[str, Any]) -> MinhashConfig:
    rest = {name: value for name, value in options.items() if name != "hash_config"}
    hashing = options.get("hash_config", {})
    return MinhashConfig(**rest, hash_name=hashing.get("hash_fc", "xxhash"), precision=hashing.get("precision", 64))


def select(folder: Path, texts: list[str], num_shards: int, config: MinhashConfig) -> tuple[list[str], Tally]:
    (folder / "selection").mkdir()
    tasks = make_tasks(folder, [{"text": text or " "} for text in texts], num_shards)
    tasks = with_dropped(tasks, folder / "selection", (near_duplicates.KIND,))
    for task in tasks:
        sign_shard(task, lambda progress: None, config=config, library=None)
    drop_near_duplicates(tasks, config, 0)
    return read(tasks)


def read(tasks: list[ShardTask]) -> tuple[list[str], Tally]:
    tally = Tally()
    kept = []
    for task in tasks:
        task.folder.mkdir()
        kept += [located.document.texts[0] for located in iter_selected(task, tally)]
    tally.check()
    return kept, tally


@pytest.mark.parametrize("case", range(len(REFERENCE["configs"])))
@pytest.mark.parametrize(("num_shards", "block", "pass_bytes"), [(1, 1 << 16, 1 << 27), (5, 8, 20_000)])
def test_clusters_are_those_of_datatrove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: int, num_shards: int, block: int, pass_bytes: int
) -> None:
    monkeypatch.setattr(near_duplicates, "_BATCH_DOCUMENTS", min(block, 1024))
    monkeypatch.setattr(near_duplicates, "_BLOCK_DOCUMENTS", 2 * block)
    monkeypatch.setattr(hash_blocks, "_PASS_BYTES", pass_bytes)
    texts, clusters = REFERENCE["texts"], REFERENCE["clusters"][case]
    first = {cluster: number for number, cluster in reversed(list(enumerate(clusters))) if cluster >= 0}
    expected = [text or " " for k, text in enumerate(texts) if clusters[k] < 0 or first[clusters[k]] == k]
    kept, tally = select(tmp_path, texts, num_shards, make_config(REFERENCE["configs"][case]))
    assert kept == expected
    assert tally.dropped == {near_duplicates.KIND: len(texts) - len(expected)} and len(expected) < len(texts)


def test_planted(tmp_path: Path) -> None:
    words = [f"w{chr(97 + k % 26)}{chr(97 + k // 26 % 26)}" for k in range(400)]
    edited = [*words[:200], "edited", *words[201:]]
    half = [*words[:200], *(f"v{word}" for word in words[200:])]
    texts = [" ".join(words), "short text", " ".join(half), " ".join(edited).upper() + "!", "short text", "x y z"]
    kept, tally = select(tmp_path, texts, 2, MinhashConfig())
    assert kept == [texts[0], texts[1], texts[2], texts[4], texts[5]], "texts without an n-gram are never dropped"
    assert tally.dropped == {"near-duplicate": 1}


def test_chinese(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + 37 * k % 5000) for k in range(300))
    texts = [text, text[:150] + "改" + text[151:], text[::-1]]
    assert select(tmp_path, texts, 1, MinhashConfig(ideographs=True))[0] == [texts[0], texts[2]]
    (tmp_path / "english").mkdir()
    assert select(tmp_path / "english", texts, 1, MinhashConfig())[0] == texts, "each text is one word"


def test_signed_shards_are_kept(tmp_path: Path) -> None:
    (tmp_path / "selection").mkdir()
    tasks = make_tasks(tmp_path, [{"text": f"a b c d e f {k}" * 3} for k in range(9)], 3)
    tasks = with_dropped(tasks, tmp_path / "selection", (near_duplicates.KIND,))
    for _ in range(2):
        for task in tasks:
            sign_shard(task, lambda progress: None, config=MinhashConfig(), library=None)
        (tmp_path / "in.jsonl").write_text("")  # it is not read a second time
    drop_near_duplicates(tasks, MinhashConfig(), 0)
    dropped = [np.fromfile(path, "<i8").tolist() for path in sorted((tmp_path / "selection").glob("*.left_out.0"))]
    assert sum(map(len, dropped)) == 8


@settings(max_examples=200, deadline=None)
@given(pairs=st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40), max_size=4))
def test_connected_documents(pairs: list[list[tuple[int, int]]]) -> None:
    clusters, naive = Clusters(31), list(range(31))
    for batch in pairs:
        some, others = (
            (np.array(part, np.int64) for part in zip(*batch, strict=True)) if batch else (np.empty(0, int),) * 2
        )
        clusters.join(some, others)
        for left, right in batch:
            low, high = sorted((naive[left], naive[right]))
            naive = [low if label == high else label for label in naive]
    assert clusters.find_others().tolist() == [k for k, label in enumerate(naive) if label != k]
