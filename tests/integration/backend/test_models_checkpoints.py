"""Distributed checkpoints in MindFormers' format, and Hugging Face weights loaded into networks."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")
pytest.importorskip("mindformers")

from mindformers import build_context
from mindformers.checkpoint.checkpoint import load_hf_checkpoint
from mindformers.checkpoint.metadata import save_metadata
from mindformers.checkpoint.reshard import infer_slice_area_by_rank
from mindformers.checkpoint.sharded_tensor import get_sharded_tensor_from_strategy_metadata
from mindformers.models.build_model import build_network
from mindformers.tools.register import MindFormerConfig
from mindspore.parallel import Layout
from safetensors.numpy import load_file, save_file

from ascend_cpt.backend.cpu import install_cpu_kernels
from ascend_cpt.backend.inference.load_weights import load_hf
from ascend_cpt.backend.models import register_models
from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.sizes import read_config
from ascend_cpt.weights.convert import Options, convert_to_hf, convert_to_mindformers
from ascend_cpt.weights.hf_folder import HfFolder
from ascend_cpt.weights.mapping import to_mindformers
from ascend_cpt.weights.mindformers_folder import MindFormersFolder

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
MODELS = ["qwen3", "qwen3_tied", "llama2", "llama31", "llama32_tied", "qwen25_tied"]
# How MindFormers lays out the dimensions of a tensor over (data, optimizer, tensor) parallel devices: by columns, by
# rows, rows over two axes (an optimizer-parallel slice of a tensor-parallel one), both dimensions, not at all.
LAYOUTS: list[tuple[Any, ...]] = [
    ("tp", "None"),
    ("None", "tp"),
    (("tp", "op"), "None"),
    (("op", "tp"), "None"),
    ("op", "tp"),
    ("None", "None"),
]


@pytest.fixture(scope="module", autouse=True)
def mindformers_context() -> None:
    install_cpu_kernels()
    register_models()
    context = {"mode": 0, "device_target": "CPU", "device_id": 0}
    build_context(MindFormerConfig(use_legacy=False, use_parallel=False, run_mode="train", context=context))


def write_distributed(folder: Path, stages: list[dict[str, np.ndarray]]) -> None:
    """Write the tensors of each pipeline stage as 8 ranks (2 data x 2 optimizer x 2 tensor) save them."""
    folder.mkdir()
    num_ranks = 8 * len(stages)
    metas: dict[int, Any] = {}
    mappings: list[Any] = []
    for (stage, tensors), inner_rank in itertools.product(enumerate(stages), range(8)):
        rank = 8 * stage + inner_rank
        layout = Layout((2, 2, 2), ("dp", "op", "tp"), rank_list=list(range(8 * stage, 8 * stage + 8)))
        name_file = f"cpt-model-{rank:07d}-{num_ranks:07d}.safetensors"
        parts, infos = {}, {}
        for index, (name, tensor) in enumerate(tensors.items()):
            how = ("None",) if tensor.ndim == 1 else LAYOUTS[index % len(LAYOUTS)]
            tensor_layout = layout(*how)
            infos[name] = (tensor_layout, ms.float32, tensor.shape)
            described = tensor_layout.to_dict()
            area = infer_slice_area_by_rank(
                described["device_matrix"], described["tensor_map"], inner_rank, tensor.shape
            )
            parts[name] = np.ascontiguousarray(tensor[tuple(slice(*bounds) for bounds in area)])
        save_file(parts, folder / name_file)
        metas[rank] = get_sharded_tensor_from_strategy_metadata(param_infos=infos, cur_npu_rank=rank)
        mappings += [(name_file, rank, [rank], (meta.key, meta.global_offset)) for meta in metas[rank].values()]
    save_metadata(metas, mappings, str(folder / "metadata.json"))


@pytest.mark.parametrize("num_stages", [1, 2])
def test_slices_of_every_layout_are_merged(tmp_path: Path, num_stages: int) -> None:
    folder = HfFolder(REFERENCE / "llama31")
    weights = {name: folder.read(name).astype(np.float32) for name in folder.tensors}
    converted = to_mindformers(weights, folder.sizes)
    stages: list[dict[str, np.ndarray]] = [{} for _ in range(num_stages)]
    for name, tensor in converted.items():
        in_last = name.startswith(("decoder.layers.1", "decoder.final", "output"))
        stages[-1 if in_last else 0][name] = tensor
    write_distributed(tmp_path / "checkpoint", stages)
    source = MindFormersFolder(tmp_path / "checkpoint")
    assert source.tensors.keys() == converted.keys()
    for name, tensor in converted.items():
        np.testing.assert_array_equal(source.read(name), tensor, strict=True)
    convert_to_hf(source, folder.config, tmp_path / "hf", Options())
    for name, tensor in load_file(tmp_path / "hf" / "model.safetensors").items():
        np.testing.assert_array_equal(tensor, weights[name], strict=True)


def test_missing_slices_are_named(tmp_path: Path) -> None:
    tensors = {"a": np.ones((8, 8), np.float32)}
    write_distributed(tmp_path / "checkpoint", [tensors])
    metadata_path = tmp_path / "checkpoint" / "metadata.json"
    metadata = json.loads(metadata_path.read_text(encoding="utf-8"))
    metadata["state_dict_metadata"]["a"]["chunk"].pop()
    metadata_path.write_text(json.dumps(metadata), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"lists 1 slices of a, expected a grid of \[2, 1\]"):
        MindFormersFolder(tmp_path / "checkpoint")


def build(folder: Path, **changes: Any) -> Any:
    types = {"params_dtype": "float32", "compute_dtype": "float32", "seq_length": 32}
    config = {key: value for key, value in read_config(folder).items() if key not in ("dtype", "transformers_version")}
    return build_network(MindFormerConfig(model_config={**config, **types, **changes}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_sharded_folder_of_any_dtype_is_loaded(tmp_path: Path, name: str, dtype: str) -> None:
    convert_to_mindformers(HfFolder(REFERENCE / name), tmp_path / "mindformers", Options(dtype=dtype))
    source = MindFormersFolder(tmp_path / "mindformers")
    convert_to_hf(source, read_config(source.path), tmp_path / "hf", Options(max_shard_bytes=20_000))
    network = build(tmp_path / "hf")
    report = load_hf(network, tmp_path / "hf")
    assert report.num_tensors == len(HfFolder(tmp_path / "hf").tensors)
    assert "none missing" in str(report)
    by_mindformers = build(tmp_path / "hf")
    load_hf_checkpoint(str(tmp_path / "hf"), by_mindformers)
    loaded = {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}
    exact = HfFolder(REFERENCE / name)
    expected = to_mindformers({key: exact.read(key).astype(np.float32) for key in exact.tensors}, exact.sizes)
    assert loaded.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_allclose(loaded[key], tensor, rtol=0 if dtype == "float32" else 2**-8)
    for parameter in by_mindformers.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), loaded[parameter.name])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": 64}, "hidden_size is 48 in config.json and 64"),
        ({"num_hidden_layers": 1}, "num_layers"),
        ({"rope_theta": 7.0}, "rope"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps"),
    ],
)
def test_other_model_is_refused_without_changing_the_network(change: dict[str, Any], named: str) -> None:
    network = build(REFERENCE / "qwen3", **change)
    before = {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}
    with pytest.raises(CheckpointError, match=named):
        load_hf(network, REFERENCE / "qwen3")
    for parameter in network.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), before[parameter.name])


def test_copy_of_the_tied_embedding_is_ignored_and_reported(tmp_path: Path) -> None:
    shutil.copytree(REFERENCE / "llama32_tied", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    save_file(weights, path)
    assert load_hf(build(tmp_path / "hf"), tmp_path / "hf").ignored == ("lm_head.weight",)
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, path)
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load_hf(build(tmp_path / "hf"), tmp_path / "hf")
