"""metadata.json of distributed checkpoints, read by MindFormers' loader and by ours."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")
pytest.importorskip("mindformers")

import mindformers.checkpoint.checkpoint as mindformers_checkpoint
import mindformers.checkpoint.metadata as mindformers_metadata
import mindformers.checkpoint.reshard as mindformers_reshard
from mindformers.checkpoint.metadata import load_metadata, save_metadata
from mindformers.checkpoint.reshard import ReshardLoader, infer_slice_area_by_rank
from mindformers.checkpoint.sharded_tensor import get_sharded_tensor_from_strategy_metadata
from mindformers.checkpoint.utils import verify_ckpt_valid
from mindspore.parallel.strategy import _NetStrategyInfo
from safetensors.numpy import save_file

from ascend_cpt.backend.checkpointing.header_metadata import use_checked_shard_maps
from ascend_cpt.backend.checkpointing.host_slices import slice_on_host
from ascend_cpt.backend.checkpointing.shard_map import describe_stages, render_shard_map
from ascend_cpt.errors import CheckpointError
from ascend_cpt.weights.mindformers_folder import MindFormersFolder
from ascend_cpt.weights.shard_map import check_shard_map

NETWORK = SimpleNamespace(compile_phase="train")
RANKS_PER_STAGE, NUM_RANKS = 8, 16
# Placements of a matrix on (data 4, tensor 2): tensor map, ranks over which the optimizer is sharded (0: none).
PLACEMENTS = [([[0], [-1]], 0), ([[-1], [0]], 0), ([[0], [-1]], -1), ([[-1], [-1]], -1), ([[0], [-1]], 2), ([[-1]], 0)]


def info(stage: int, tensor_map: list[list[int]], shard_size: int, shape: tuple[int, ...]) -> Any:
    """Return what MindSpore's StrategyInfo has, whose attributes cannot be set."""
    ranks = list(range(stage * RANKS_PER_STAGE, (stage + 1) * RANKS_PER_STAGE))
    return SimpleNamespace(
        dev_matrix=[4, 2],
        tensor_map=tensor_map,
        rank_list=ranks,
        opt_weight_shard_size=shard_size,
        tensor_shape=shape,
        tensor_type="Float32",
    )


def make_layout(*, shared: bool = True) -> dict[int, dict[str, Any]]:
    """Return the layout of all ranks of two stages; with `shared`, a parameter is in both."""
    layout: dict[int, dict[str, Any]] = {}
    for rank in range(NUM_RANKS):
        stage = rank // RANKS_PER_STAGE
        infos = {}
        for number, (tensor_map, shard_size) in enumerate(PLACEMENTS):
            shape = (16, 8)[: len(tensor_map)]
            for prefix in ("", "adam_m.", "accu_grads."):
                infos[f"{prefix}layers.{stage}.{number}.weight"] = info(stage, tensor_map, shard_size, shape)
        if shared:
            infos["embedding.weight"] = info(stage, [[0], [-1]], -1, (16, 8))
        layout[rank] = infos
    return layout


def describe_all(layout: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return _NetStrategyInfo(NETWORK, global_layout={"train": layout}, local_layout={}).get_rank_layout()


def cut(tensor: np.ndarray, tensor_layout: Any, shape: tuple[int, ...], rank_in_stage: int) -> np.ndarray:
    """Return the slice of a tensor that a rank of a stage has."""
    described = tensor_layout.to_dict()
    area = infer_slice_area_by_rank(described["device_matrix"], described["tensor_map"], rank_in_stage, shape)
    return tensor[tuple(slice(*bounds) for bounds in area)]


def write_checkpoint(folder: Path, layout: dict[int, dict[str, Any]], monkeypatch: Any, *, ours: bool) -> Any:
    """Write every rank's files and metadata.json, by us or by MindFormers; return the whole tensors."""
    folder.mkdir()
    everything = describe_all(layout)
    generator = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for rank, infos in everything.items():
        parts: dict[str, dict[str, np.ndarray]] = {"model": {}, "opt": {}}
        for name, (tensor_layout, _, shape) in infos.items():
            if name.startswith("accu_grads"):
                continue
            tensor = tensors.setdefault(name, generator.normal(size=shape).astype(np.float32))
            part = np.ascontiguousarray(cut(tensor, tensor_layout, shape, rank % RANKS_PER_STAGE))
            parts["opt" if name.startswith("adam") else "model"][name] = part
        for kind, values in parts.items():
            save_file(values, folder / f"cpt-{kind}-{rank:07d}-{NUM_RANKS:07d}.safetensors")
    names = [name for name in tensors if not name.startswith("adam")]
    if ours:
        text = render_shard_map(describe_stages(NETWORK, layout), prefix="cpt", model_names=names, num_ranks=NUM_RANKS)
        (folder / "metadata.json").write_text("".join(text), encoding="utf-8")
    else:
        metas = {
            rank: get_sharded_tensor_from_strategy_metadata(param_infos=infos, cur_npu_rank=rank)
            for rank, infos in everything.items()
        }
        monkeypatch.setattr(mindformers_metadata, "get_group_size", lambda: NUM_RANKS)
        files = mindformers_metadata.get_total_params_file_mapping_info(metas, "cpt", names)
        save_metadata(metas, files, str(folder / "metadata.json"))
    check_shard_map(folder / "metadata.json")
    return tensors


def load_and_compare(
    folder: Path, wanted: dict[str, Any], tensors: dict[str, np.ndarray], rank: int, ranks_per_stage: int
) -> int:
    """Load a rank's parts with MindFormers' loader and compare them; return how many are less than the tensor."""
    sources, files = load_metadata(str(folder / "metadata.json"))
    metas = get_sharded_tensor_from_strategy_metadata(param_infos=wanted, cur_npu_rank=rank)
    loaded = ReshardLoader(str(folder), metas, sources, files).load()
    assert loaded.keys() == wanted.keys()
    num_cut = 0
    for name, (tensor_layout, _, shape) in wanted.items():
        expected = cut(tensors[name], tensor_layout, shape, rank % ranks_per_stage)
        num_cut += expected.size < tensors[name].size
        np.testing.assert_array_equal(loaded[name].asnumpy(), expected, strict=True)
    return num_cut


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("rank", [0, 5, 11])
def test_every_rank_loads_its_parts(tmp_path: Path, monkeypatch: Any, ours: bool, rank: int) -> None:
    """MindFormers' loader, in the same layout and in another one; `ours` False: checkpoints of earlier versions."""
    layout = make_layout()
    tensors = write_checkpoint(tmp_path / "step", layout, monkeypatch, ours=ours)
    verify_ckpt_valid(str(tmp_path / "step"))
    monkeypatch.setattr(mindformers_reshard, "get_real_rank", lambda: rank)
    other = describe_all(
        {rank: {name: info(rank // 8, [[1]] + [[-1]] * (len(t.shape) - 1), 0, t.shape) for name, t in tensors.items()}}
    )
    for wanted in (describe_all(layout)[rank], other[rank]):
        wanted = {name: value for name, value in wanted.items() if not name.startswith("accu_grads")}
        load_and_compare(tmp_path / "step", wanted, tensors, rank, RANKS_PER_STAGE)
    source = MindFormersFolder(tmp_path / "step")
    assert source.tensors.keys() == {name for name in tensors if not name.startswith("adam")}
    for name in source.tensors:
        np.testing.assert_array_equal(source.read(name), tensors[name], strict=True)


# Device matrix of a stage, the number of stages, and the ranks over which the optimizer is sharded (0: none).
OTHER_SIZES = [([1, 4], 1, 0), ([2, 4], 1, -1), ([1, 1], 2, 0), ([2, 1], 4, -1), ([8, 1], 1, 2), ([1, 1], 1, 0)]


@pytest.mark.parametrize(("devices", "num_stages", "shard_size"), OTHER_SIZES)
def test_a_run_in_other_sizes_loads_its_parts(
    tmp_path: Path, monkeypatch: Any, devices: list[int], num_stages: int, shard_size: int
) -> None:
    """As with `--reshard`: other sizes of data, tensor and pipeline, and other layers in the stages."""
    tensors = write_checkpoint(tmp_path / "step", make_layout(), monkeypatch, ours=True)
    monkeypatch.setattr(mindformers_reshard, "smart_slice", mindformers_reshard.smart_slice)
    slice_on_host()
    num_ranks = math.prod(devices)
    layout: dict[int, dict[str, Any]] = {}
    for rank in range(num_stages * num_ranks):
        first = rank // num_ranks * num_ranks
        ranks = list(range(first, first + num_ranks))
        names = [name for number, name in enumerate(tensors) if number % num_stages == rank // num_ranks]
        layout[rank] = {}
        for number, name in enumerate(names):
            axis = number % len(tensors[name].shape)
            tensor_map = [[0] if at == axis else [-1] for at in range(len(tensors[name].shape))]
            settings = {"dev_matrix": devices, "rank_list": ranks, "opt_weight_shard_size": shard_size}
            layout[rank][name] = SimpleNamespace(
                **{**vars(info(0, tensor_map, 0, tensors[name].shape)), "tensor_map": tensor_map, **settings}
            )
    num_cut = 0
    for rank, wanted in describe_all(layout).items():
        monkeypatch.setattr(mindformers_reshard, "get_real_rank", lambda rank=rank: rank)
        num_cut += load_and_compare(tmp_path / "step", wanted, tensors, rank, num_ranks)
    assert bool(num_cut) == (num_ranks > 1)


def test_metadata_is_that_of_mindformers_with_one_place_a_shard(tmp_path: Path, monkeypatch: Any) -> None:
    layout = make_layout()
    write_checkpoint(tmp_path / "ours", layout, monkeypatch, ours=True)
    write_checkpoint(tmp_path / "theirs", layout, monkeypatch, ours=False)
    ours, theirs = (json.loads((tmp_path / name / "metadata.json").read_text()) for name in ("ours", "theirs"))
    tensors = {k: v for k, v in theirs["state_dict_metadata"].items() if not k.startswith("accu_grads")}
    for entry in tensors.values():
        entry["properties"]["replica_id"] = 0
        entry["chunk"].sort(key=lambda chunk: chunk["global_offset"])
    for entry in ours["state_dict_metadata"].values():
        entry["chunk"].sort(key=lambda chunk: chunk["global_offset"])
    assert ours["state_dict_metadata"] == tensors
    places = {k: v for k, v in theirs["storage_data"].items() if not ast.literal_eval(k)[0].startswith("accu_grads")}
    assert ours["storage_data"].keys() == places.keys()
    for key, (place,) in ours["storage_data"].items():
        first = places[key][0]
        assert place == {**first, "rank_group": [first["storage_rank"]]}
    assert max(map(len, places.values())) == 8, "the case has replicas"


def test_one_rank_per_stage_is_converted() -> None:
    assert list(describe_stages(NETWORK, make_layout())) == [0, 8]
    # A rank whose parameters are others than its stage's is not represented by it.
    layout = make_layout()
    layout[3] = {name: value for name, value in layout[3].items() if ".5." in name}
    assert 3 in describe_stages(NETWORK, layout)


def test_the_loader_refuses_a_map_with_a_path(tmp_path: Path, monkeypatch: Any) -> None:
    """Through what MindFormers' loader calls first, as in training and evaluation."""
    write_checkpoint(tmp_path / "step", make_layout(), monkeypatch, ours=True)
    monkeypatch.setattr(mindformers_checkpoint, "verify_ckpt_valid", mindformers_checkpoint.verify_ckpt_valid)
    use_checked_shard_maps()
    assert mindformers_checkpoint.get_checkpoint_path(str(tmp_path / "step"))
    path = tmp_path / "step/metadata.json"
    path.write_text(path.read_text().replace('"file_name": "cpt-model-', '"file_name": "../cpt-model-', 1))
    with pytest.raises(CheckpointError, match="metadata.json: damaged: .*is not a plain file name"):
        mindformers_checkpoint.get_checkpoint_path(str(tmp_path / "step"))
