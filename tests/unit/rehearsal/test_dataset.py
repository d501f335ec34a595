"""The small dataset: the user's rows in a small vocabulary, or random documents."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.data.packed.manifest import Manifest, load_manifest, manifest_path, write_manifest
from ascend_cpt.data.packed.packing import RowLayout
from ascend_cpt.data.packed.shard_writers import MMAP, open_output
from ascend_cpt.data.tokenizing.base import join_encoded
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import DataError
from ascend_cpt.rehearsal.dataset import Vocabulary, draw_rows, fold, make_dataset, read_user_rows

VOCABULARY = Vocabulary(size=32)
EOD = 999


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Return the prefix of an mmap dataset of 70 tokens, the documents' ends among them."""
    prefix = tmp_path / "user/train_text_document"
    prefix.parent.mkdir()
    output = open_output(MMAP, prefix, RowLayout(seq_length=16, eod_id=EOD, pad_id=998), 1000)
    output.add(join_encoded([[*range(100, 134)], [*range(200, 234)]]))
    shard = output.close(num_documents=2, text_bytes=100)
    tokenizer = TokenizerInfo(type="x", name="x", fingerprint="x", vocab_size=1000, eod_id=EOD, pad_id=998)
    manifest = Manifest(key="text", output_format=MMAP, seq_length=16, tokenizer=tokenizer, shards=(shard,))
    write_manifest(manifest, manifest_path(prefix))
    return prefix


def make(source: str, prefix: Path, num_rows: int = 5) -> Manifest:
    return make_dataset(source, prefix, num_rows=num_rows, seq_length=16, vocabulary=VOCABULARY, seed=1)


def test_ids_are_folded_and_ends_of_documents_stay() -> None:
    rows = np.array([[0, 1, 2, 31, 32, EOD, 998]], np.int32)
    assert fold(rows, EOD, VOCABULARY).tolist() == [[2, 3, 4, 3, 4, 0, 10]]


def test_rows_of_the_user_are_used(packed: Path) -> None:
    rows = read_user_rows(str(packed), 100, 16, VOCABULARY)
    assert rows is not None
    tokens = [*range(100, 134), EOD, *range(200, 234), EOD]
    wanted = fold(np.array(tokens[:68], np.int32).reshape(4, 17), EOD, VOCABULARY)
    assert rows.tolist() == wanted.tolist()
    manifest = make(str(packed), packed.parent.parent / "small/x")
    # Five rows are wanted and four are there: the first one is repeated.
    assert manifest.num_rows == 5 and manifest.settings["origin"] == str(packed)


def test_a_dataset_that_is_not_here_is_drawn(tmp_path: Path) -> None:
    manifest = make("/data/packed/none_text_document", tmp_path / "small/source_0")
    assert manifest.settings["origin"] == "random documents"
    loaded = load_manifest(tmp_path / "small/source_0")
    assert loaded.digest == manifest.digest
    assert (loaded.num_rows, loaded.seq_length, loaded.tokenizer.vocab_size) == (5, 16, 32)
    with closing(sqlite3.connect(tmp_path / "small/source_0.mindrecord.db")) as index:
        assert index.execute("SELECT COUNT(*) FROM INDEXES").fetchone() == (5,)


def test_random_rows_are_legal_and_differ_between_datasets() -> None:
    first, again, other = (draw_rows(name, 50, 64, VOCABULARY, 1) for name in ("a", "a", "b"))
    assert first.shape == (50, 65) and first.dtype == np.int32
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.min() == VOCABULARY.eod_id and first.max() < VOCABULARY.size
    assert not (first == VOCABULARY.pad_id).any()
    counts = np.bincount(first.ravel(), minlength=32)[2:]
    assert counts[:5].sum() > counts[-5:].sum() * 3


def test_a_damaged_dataset_is_an_error(packed: Path, tmp_path: Path) -> None:
    path = manifest_path(packed)
    path.write_text(path.read_text(encoding="utf-8").replace('"num_documents": 2', '"num_documents": 3'))
    with pytest.raises(DataError, match="digest differs"):
        make(str(packed), tmp_path / "small/x")
