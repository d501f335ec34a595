"""Larger models: new blocks leave the function unchanged, and new rows have the values of the chosen method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.families import HF_EMBEDDING, HF_OUTPUT
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.weights.compare import compare_round_trip
from ascend_cpt.weights.convert import Options, convert_to_hf, convert_to_mindformers, write_hf
from ascend_cpt.weights.dtypes import to_float32
from ascend_cpt.weights.forward import compute_logits
from ascend_cpt.weights.growth.blocks import ExpandedBlocks, expand_config, plan_blocks
from ascend_cpt.weights.growth.rows import METHODS, ExtendedVocabulary, NewRows, pad_rows
from ascend_cpt.weights.hf_folder import HfFolder
from ascend_cpt.weights.mindformers_folder import MindFormersFolder

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
MODELS = ["qwen3", "qwen3_tied", "llama2", "llama32_tied", "qwen25_tied"]


def logits_of(folder: HfFolder) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(0, 120, (2, 16))
    return compute_logits(folder.sizes, lambda name: to_float32(folder.read(name), folder.tensors[name].dtype), tokens)


def is_round_trip_exact(folder: HfFolder) -> bool:
    return all(report.num_equal == report.num_tensors for report in compare_round_trip(folder))


def copy_with_dtype(name: str, target: Path, dtype: str) -> HfFolder:
    between = target.with_name(f"{target.name}_between")
    folder = HfFolder(REFERENCE / name)
    convert_to_mindformers(folder, between, Options(dtype=dtype))
    convert_to_hf(MindFormersFolder(between), folder.config, target, Options())
    return HfFolder(target)


def expand(folder: HfFolder, target: Path, every: int, **changes: Any) -> HfFolder:
    blocks = plan_blocks(folder.sizes.num_layers, every)
    config = expand_config({**folder.config, **changes}, blocks)
    write_hf(ExpandedBlocks(folder, config, blocks), config, target, Options(max_shard_bytes=20_000))
    return HfFolder(target)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("every", [1, 2])
def test_new_blocks_do_not_change_the_logits(tmp_path: Path, name: str, every: int) -> None:
    folder = HfFolder(REFERENCE / name)
    expanded = expand(folder, tmp_path / "expanded", every)
    expanded.check()
    assert expanded.sizes.num_layers == 2 + 2 // every
    assert np.array_equal(logits_of(expanded), logits_of(folder))
    assert is_round_trip_exact(expanded)


def test_new_blocks_are_copies_with_two_zero_tensors(tmp_path: Path) -> None:
    folder = copy_with_dtype("qwen3", tmp_path / "base", "bfloat16")
    expanded = expand(folder, tmp_path / "expanded", 1, layer_types=["a", "b"])
    assert expanded.config["layer_types"] == ["a", "a", "b", "b"]
    for name, info in expanded.tensors.items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        old = name.replace(f".layers.{layer}.", f".layers.{layer // 2}.")
        assert info.dtype == "BF16"
        if layer % 2 and name.endswith(("o_proj.weight", "down_proj.weight")):
            assert not expanded.read(name).any()
        else:
            assert np.array_equal(expanded.read(name), folder.read(old))


def test_blocks_must_be_divisible() -> None:
    assert [(block.source, block.is_new) for block in plan_blocks(4, 2)] == [
        (0, False), (1, False), (1, True), (2, False), (3, False), (3, True),
    ]  # fmt: skip
    with pytest.raises(CheckpointError, match="--every 3: does not divide the 4 blocks; choose one of 1, 2, 4"):
        plan_blocks(4, 3)


def extend(folder: HfFolder, target: Path, new: NewRows) -> HfFolder:
    config = {**folder.config, "vocab_size": new.num_rows}
    write_hf(ExtendedVocabulary(folder, new), config, target, Options(), texts={"note.json": json.dumps(1)})
    assert json.loads((target / "note.json").read_text()) == 1
    return HfFolder(target)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "dtype"), [("llama3", "float32"), ("qwen3_tied", "bfloat16")])
def test_new_rows(tmp_path: Path, name: str, dtype: str, method: str) -> None:
    folder = copy_with_dtype(name, tmp_path / "base", dtype)
    # The tokenizer uses 120 of the 128 rows, so the first 8 of the 20 new tokens take free rows.
    parts = tuple((k, k + 1, 2 * k) for k in range(20))
    new = NewRows(first_id=120, parts=parts, num_rows=pad_rows(140, 128, 32), method=method)
    assert new.num_rows == 160
    extended = extend(folder, tmp_path / "extended", new)
    extended.check()
    names = [HF_EMBEDDING] + ([] if folder.sizes.tie_word_embeddings else [HF_OUTPUT])
    assert set(extended.tensors) == set(folder.tensors)
    for tensor in names:
        old, rows = (to_float32(part.read(tensor), part.tensors[tensor].dtype) for part in (folder, extended))
        assert np.array_equal(old[:120], rows[:120])
        if method == "mean":
            expected = np.stack([old[list(ids)].mean(axis=0) for ids in parts])
            np.testing.assert_allclose(rows[120:140], expected, rtol=0, atol=2e-3 if dtype == "bfloat16" else 1e-7)
        elif method == "mean-all":
            distance = np.abs(rows[120:140] - old[:120].mean(axis=0)) / old[:120].std(axis=0)
            assert 0.004 < distance.mean() < 0.02
        else:
            assert abs(rows[120:140].std() / old[:120].std() - 1) < 0.1
        assert len(np.unique(rows[120:140], axis=0)) == 20
        np.testing.assert_allclose(rows[140:], np.broadcast_to(old[:120].mean(axis=0), (20, 48)), atol=2e-3)
    for tensor in set(folder.tensors) - set(names):
        assert np.array_equal(folder.read(tensor), extended.read(tensor))
    assert is_round_trip_exact(extended)
    # Logits of old tokens are unchanged.
    np.testing.assert_allclose(logits_of(extended)[..., :120], logits_of(folder)[..., :120], atol=1e-5)


def test_both_layers_get_different_noise(tmp_path: Path) -> None:
    folder = HfFolder(REFERENCE / "llama3")
    new = NewRows(first_id=128, parts=((1,), (2,)), num_rows=130, method="random")
    extended = extend(folder, tmp_path / "extended", new)
    again = extend(folder, tmp_path / "again", new)
    assert not np.array_equal(extended.read(HF_EMBEDDING)[128:], extended.read(HF_OUTPUT)[128:])
    assert np.array_equal(extended.read(HF_EMBEDDING), again.read(HF_EMBEDDING))
    assert read_sizes(extended.config).vocab_size == 130
