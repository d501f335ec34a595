"""Conversion of folders: shards, dtypes, tied embeddings, round trips, and damaged input."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_cpt.errors import CheckpointError, ConfigError
from ascend_cpt.model.families import HF_EMBEDDING
from ascend_cpt.model.sizes import read_config, read_sizes
from ascend_cpt.weights import folder_writer
from ascend_cpt.weights.compare import compare_folders
from ascend_cpt.weights.convert import Options, Summary, convert_to_hf, convert_to_mindformers
from ascend_cpt.weights.dtypes import DTYPES, cast
from ascend_cpt.weights.hf_config import make_config
from ascend_cpt.weights.hf_folder import HfFolder
from ascend_cpt.weights.mindformers_folder import MindFormersFolder
from ascend_cpt.weights.safetensors_file import SafetensorsFile
from ascend_cpt.weights.sources import MeanOfFolders

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
MODELS = ["qwen3", "qwen3_tied", "llama2", "llama3", "llama31", "llama32_tied", "mistral", "qwen25_tied"]
SHARD_BYTES = 20_000


def copy_as(name: str, target: Path, *, dtype: str = "float32", shard_bytes: int = SHARD_BYTES) -> HfFolder:
    """Write a reference model with another dtype and in shards, via the MindFormers format."""
    between = target.with_name(f"{target.name}_between")
    convert_to_mindformers(HfFolder(REFERENCE / name), between, Options(dtype=dtype))
    convert_to_hf(MindFormersFolder(between), read_config(between), target, Options(max_shard_bytes=shard_bytes))
    return HfFolder(target)


def convert_back(folder: HfFolder, tmp_path: Path, options: Options) -> tuple[HfFolder, Summary]:
    convert_to_mindformers(folder, tmp_path / "mindformers", options)
    source = MindFormersFolder(tmp_path / "mindformers")
    summary = convert_to_hf(source, read_config(source.path), tmp_path / "back", options)
    return HfFolder(tmp_path / "back"), summary


def assert_equal(folder: HfFolder, other: Any) -> None:
    reports = compare_folders(folder, other)
    assert sum(report.num_tensors for report in reports) == len(folder.tensors)
    assert all(report.num_equal == report.num_tensors and report.max_difference == 0 for report in reports)


@pytest.mark.parametrize("shard_bytes", [SHARD_BYTES, 10**9], ids=["shards", "whole"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bit_exact(tmp_path: Path, name: str, dtype: str, shard_bytes: int) -> None:
    folder = copy_as(name, tmp_path / "model", dtype=dtype, shard_bytes=shard_bytes)
    assert (len(list(folder.path.glob("*.safetensors"))) > 1) is (shard_bytes == SHARD_BYTES)
    back, summary = convert_back(folder, tmp_path, Options(max_shard_bytes=shard_bytes))
    assert_equal(folder, back)
    assert_equal(folder, MindFormersFolder(tmp_path / "mindformers"))
    assert summary.num_parameters == sum(info.num_elements for info in folder.tensors.values())
    assert {info.dtype for info in back.tensors.values()} == {DTYPES[dtype]}
    assert back.config["dtype"] == dtype


def test_shards_are_named_and_indexed_as_in_transformers(tmp_path: Path) -> None:
    folder = copy_as("llama3", tmp_path / "model")
    files = sorted(path.name for path in folder.path.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((folder.path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["weight_map"].keys() == folder.tensors.keys()
    assert index["metadata"]["total_size"] == sum(info.size_bytes for info in folder.tensors.values())
    for path in folder.path.glob("*.safetensors"):
        tensors = SafetensorsFile(path).tensors.values()
        assert len(tensors) == 1 or sum(info.size_bytes for info in tensors) <= SHARD_BYTES


def test_dtype_conversion_and_vocabulary(tmp_path: Path) -> None:
    folder = HfFolder(REFERENCE / "llama3")
    back, _ = convert_back(folder, tmp_path, Options(dtype="bfloat16"))
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = cast(folder.read(name), "F16", "BF16", name)
    np.testing.assert_array_equal(back.read(name), expected)


def test_vocabulary_is_extended_with_the_mean_row_and_truncated(tmp_path: Path) -> None:
    folder = copy_as("llama3", tmp_path / "model")
    grown, _ = convert_back(folder, tmp_path, Options(vocab_size=130))
    assert grown.config["vocab_size"] == 130
    for name in (HF_EMBEDDING, "lm_head.weight"):
        old, new = folder.read(name), grown.read(name)
        np.testing.assert_array_equal(new[:128], old)
        np.testing.assert_allclose(new[128:], np.tile(old.mean(0), (2, 1)), rtol=1e-5, atol=1e-7)
    (tmp_path / "again").mkdir()
    cut, _ = convert_back(grown, tmp_path / "again", Options(vocab_size=128))
    assert_equal(folder, cut)


def test_the_mean_of_checkpoints(tmp_path: Path) -> None:
    folders = []
    for index, scale in enumerate((1.0, 3.0)):
        folder = copy_as("qwen3", tmp_path / f"model{index}")
        convert_to_mindformers(folder, tmp_path / f"checkpoint{index}", Options())
        (path,) = (tmp_path / f"checkpoint{index}").glob("*.safetensors")
        data = bytearray(path.read_bytes())
        begin = 8 + int.from_bytes(data[:8], "little")
        data[begin:] = (np.frombuffer(data[begin:], np.float32) * np.float32(scale)).tobytes()
        path.write_bytes(data)
        folders.append(MindFormersFolder(tmp_path / f"checkpoint{index}"))
    convert_to_hf(MeanOfFolders(folders), read_config(folders[0].path), tmp_path / "mean", Options())
    mean, first = HfFolder(tmp_path / "mean"), HfFolder(tmp_path / "model0")
    for name in first.tensors:
        np.testing.assert_array_equal(mean.read(name), 2 * first.read(name))
    other = MindFormersFolder(tmp_path / "checkpoint1")
    other.tensors.popitem()
    with pytest.raises(CheckpointError, match="checkpoint1: does not have the same tensors"):
        MeanOfFolders([folders[0], other])


def test_companions_are_copied(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(REFERENCE / "llama3", model)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (model / name).write_text("{}", encoding="utf-8")
    convert_to_mindformers(HfFolder(model), tmp_path / "mindformers", Options())
    names = {path.name for path in (tmp_path / "mindformers").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"} <= names
    assert "expected.npz" not in names


def test_differences_are_reported_by_kind_of_tensor(tmp_path: Path) -> None:
    folder = copy_as("llama3", tmp_path / "model", shard_bytes=10**9)
    other = copy_as("llama3", tmp_path / "other", shard_bytes=10**9)
    path = other.path / "model.safetensors"
    file = other._files["lm_head.weight"]
    data = bytearray(path.read_bytes())
    data[file._offsets["lm_head.weight"] + 1] ^= 1
    path.write_bytes(data)
    reports = {report.kind: report for report in compare_folders(folder, HfFolder(other.path))}
    assert reports["lm_head"].num_equal == 0
    assert reports["lm_head"].max_difference > 0
    assert all(report.num_equal == report.num_tensors for kind, report in reports.items() if kind != "lm_head")
    assert reports["self_attn.q_proj"].num_tensors == 2


def spoil_json(path: Path, change: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "spoil", "named"),
    [
        ("model-00002-of-*", lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated"),
        ("model-00002-of-*", lambda path: path.unlink(), "cannot be read"),
        (
            "*.index.json",
            lambda path: spoil_json(path, lambda index: index["weight_map"].pop("model.norm.weight")),
            r"no entry for model\.norm\.weight",
        ),
        (
            "*.index.json",
            lambda path: spoil_json(
                path, lambda index: index["weight_map"].update(x="model-00001-of-00011.safetensors")
            ),
            "does not hold x|cannot be read",
        ),
        ("*.index.json", lambda path: path.write_text("{}", encoding="utf-8"), "no weight_map"),
        ("*.index.json", lambda path: path.unlink(), "has no model.safetensors.index.json"),
        ("config.json", lambda path: spoil_json(path, lambda config: config.update(hidden_size=64)), "has shape"),
        ("config.json", lambda path: spoil_json(path, lambda config: config.update(num_hidden_layers=3)), "missing"),
        ("config.json", lambda path: spoil_json(path, lambda config: config.update(model_type="qwen3")), "q_norm"),
        ("config.json", lambda path: spoil_json(path, lambda config: config.update(model_type="phi3")), "phi3"),
    ],
)
def test_bad_input_is_a_one_line_error_and_nothing_is_written(
    tmp_path: Path, file: str, spoil: Any, named: str
) -> None:
    copy_as("llama3", tmp_path / "model")
    (path,) = (tmp_path / "model").glob(file)
    spoil(path)
    with pytest.raises((CheckpointError, ConfigError), match=named) as caught:
        convert_to_mindformers(HfFolder(tmp_path / "model"), tmp_path / "new", Options())
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*new*"))


def test_pickles_are_never_read(tmp_path: Path) -> None:
    shutil.copy(REFERENCE / "llama3/config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match="save_pretrained"):
        HfFolder(tmp_path)


def test_an_existing_folder_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with pytest.raises(CheckpointError, match="already exists"):
        convert_to_mindformers(HfFolder(REFERENCE / "llama3"), tmp_path / "new", Options())


def test_a_full_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_writer, "write_file", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        convert_to_mindformers(HfFolder(REFERENCE / "llama3"), tmp_path / "new", Options())
    assert not list(tmp_path.iterdir())


def test_joined_tensors_must_have_the_same_dtype(tmp_path: Path) -> None:
    folder = copy_as("llama3", tmp_path / "model")
    name = "model.layers.0.self_attn.q_proj.weight"
    folder.tensors[name] = dataclasses.replace(folder.tensors[name], dtype="BF16")
    with pytest.raises(CheckpointError, match="--dtype"):
        convert_to_mindformers(folder, tmp_path / "new", Options())


@pytest.mark.parametrize("name", [*MODELS, "qwen3_yarn", "llama_yarn", "qwen25_yarn", "mistral_yarn", "qwen3_moe_yarn"])
def test_config_of_a_trained_model(name: str) -> None:
    config = read_config(REFERENCE / name)
    made = make_config({**config, "seq_length": 32, "compute_dtype": "bfloat16", "pad_token_id": 127})
    assert read_sizes(made) == read_sizes(config)
    assert made["architectures"] == config["architectures"]
    assert made.get("rope_scaling") == config.get("rope_scaling")
    assert "seq_length" not in made


def test_model_with_other_sizes_is_refused() -> None:
    folder = HfFolder(REFERENCE / "llama31")
    folder.check_model(folder.config)
    for key, value in (("num_attention_heads", 2), ("rms_norm_eps", 1e-6), ("rope_theta", 5e5), ("vocab_size", 256)):
        with pytest.raises(CheckpointError, match="a different model"):
            folder.check_model({**folder.config, key: value})


def test_yarn_may_be_added_but_not_removed_or_changed() -> None:
    base, extended = HfFolder(REFERENCE / "qwen3"), HfFolder(REFERENCE / "qwen3_yarn")
    yarn = extended.config["rope_scaling"]
    base.check_model({**base.config, "rope_scaling": yarn})
    for folder, changes in (
        (base, {"rope_scaling": yarn, "num_hidden_layers": 1}),
        (extended, {"rope_scaling": None}),
        (extended, {"rope_scaling": {**yarn, "factor": 2.0}}),
        (HfFolder(REFERENCE / "llama31"), {"rope_scaling": yarn}),
    ):
        with pytest.raises(CheckpointError, match="a different model"):
            folder.check_model({**folder.config, **changes})


def test_invalid_mindformers_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        MindFormersFolder(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="give a MindFormers checkpoint folder"):
        MindFormersFolder(tmp_path)
    convert_to_mindformers(HfFolder(REFERENCE / "llama3"), tmp_path / "new", Options())
    (path,) = (tmp_path / "new").glob("*.safetensors")
    shutil.copy(path, path.with_name("model-0000001-0000002.safetensors"))
    with pytest.raises(CheckpointError, match="no metadata.json"):
        MindFormersFolder(tmp_path / "new")
    (tmp_path / "new" / "metadata.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="metadata.json: damaged"):
        MindFormersFolder(tmp_path / "new")
