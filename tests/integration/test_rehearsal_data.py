"""The small datasets and random weights of a rehearsal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.data.packed.manifest import load_manifest, manifest_path
from ascend_cpt.data.packed.mindrecord import iter_rows
from ascend_cpt.errors import DataError
from ascend_cpt.rehearsal.dataset import Vocabulary, draw_rows, fold, make_dataset
from ascend_cpt.rehearsal.weights import write_random_folder
from ascend_cpt.weights.hf_folder import HfFolder
from tests.small_model import SMALL

VOCABULARY = Vocabulary(size=64)


def read(prefix: Path) -> np.ndarray:
    manifest = load_manifest(str(prefix))
    return np.concatenate([rows for shard in manifest.shards for rows in iter_rows(manifest.folder / shard.file, 64)])


def make(source: str, prefix: Path, num_rows: int = 6, seq_length: int = 8) -> np.ndarray:
    make_dataset(source, prefix, num_rows=num_rows, seq_length=seq_length, vocabulary=VOCABULARY, seed=1)
    return read(prefix)


def test_missing_dataset_is_replaced_by_random_documents(tmp_path: Path) -> None:
    rows = make(str(tmp_path / "none"), tmp_path / "a")
    assert rows.shape == (6, 9) and rows.min() >= 0 and rows.max() < 64 and not (rows == VOCABULARY.pad_id).any()
    assert np.array_equal(rows, make(str(tmp_path / "none"), tmp_path / "b" / "a")), "the same name gives the same rows"
    assert not np.array_equal(rows, make(str(tmp_path / "none"), tmp_path / "c"))
    assert load_manifest(str(tmp_path / "a")).settings["origin"] == "random documents"


def test_users_rows_are_folded_and_cut_to_length(tmp_path: Path) -> None:
    large = Vocabulary(size=1000, eod_id=7, pad_id=8)
    make_dataset("none", tmp_path / "user", num_rows=3, seq_length=19, vocabulary=large, seed=2)
    users = read(tmp_path / "user")
    small = make(str(tmp_path / "user"), tmp_path / "small", num_rows=4, seq_length=9)
    # Rows of 20 ids are two rows of 10.
    assert np.array_equal(small, fold(users.reshape(-1, 10)[:4], 7, VOCABULARY))
    assert ((small == VOCABULARY.eod_id) == (users.reshape(-1, 10)[:4] == 7)).all()
    assert load_manifest(str(tmp_path / "small")).settings["origin"] == str(tmp_path / "user")


def test_short_dataset_is_repeated_and_a_damaged_one_refused(tmp_path: Path) -> None:
    make_dataset("none", tmp_path / "user", num_rows=2, seq_length=8, vocabulary=VOCABULARY, seed=2)
    rows = make(str(tmp_path / "user"), tmp_path / "small", num_rows=5)
    assert np.array_equal(rows[:2], rows[2:4]) and np.array_equal(rows[4], rows[0])
    manifest_path(tmp_path / "user").write_text("{")
    with pytest.raises(DataError):
        make(str(tmp_path / "user"), tmp_path / "other")


def test_random_documents_end_and_have_frequent_tokens() -> None:
    rows = draw_rows("web", 200, 128, VOCABULARY, 1)
    assert (rows == VOCABULARY.eod_id).sum() / 200 == pytest.approx(4, rel=0.2)
    assert (rows == 2).sum() > 10 * (rows == 40).sum()


def test_random_weights_are_a_complete_folder(tmp_path: Path) -> None:
    model = {**SMALL, "model_type": "qwen3", "qk_layernorm": True, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
    model |= {"architectures": ["Qwen3ForCausalLM"], "initializer_range": 0.05, "max_position_embeddings": 128}
    for name in ("a", "b"):
        write_random_folder(model, tmp_path / name, seed=3)
    first, second = HfFolder(tmp_path / "a"), HfFolder(tmp_path / "b")
    first.check()
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    for name in first.tensors:
        assert np.array_equal(first.read(name), second.read(name))
