"""A resumed rank reads from the disk only the tensors that it needs."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")
pytest.importorskip("mindformers")

import mindformers.checkpoint.reshard as mindformers_reshard
from mindformers.checkpoint.metadata import load_metadata
from mindformers.checkpoint.reshard import ReshardLoader
from mindformers.checkpoint.sharded_tensor import get_sharded_tensor_from_strategy_metadata
from safetensors.numpy import save_file

from ascend_cpt.weights.safetensors_file import SafetensorsFile
from tests.integration.backend.checkpointing.test_shard_map import describe_all, make_layout, write_checkpoint

NUM_TENSORS = 24
TENSOR_BYTES = 4 << 20
FILE_BYTES = NUM_TENSORS * TENSOR_BYTES


def count_cached_bytes(path: Path) -> int:
    """Return how much of a file is in the page cache."""
    size = path.stat().st_size
    num_pages = -(-size // mmap.PAGESIZE)
    flags = (ctypes.c_ubyte * num_pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), flags) == 0
    return sum(flag & 1 for flag in flags) * mmap.PAGESIZE


def drop_from_cache(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if count_cached_bytes(path):
        pytest.skip("this file system keeps files in memory")


def test_only_the_chosen_tensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    tensors = {f"t{number:02}": np.full(TENSOR_BYTES // 4, number, np.float32) for number in range(NUM_TENSORS)}
    save_file(tensors, path)
    drop_from_cache(path)
    loaded = ms.load_checkpoint(str(path), format="safetensors", choice_func=lambda name: name == "t01")
    assert list(loaded) == ["t01"] and np.array_equal(loaded["t01"].asnumpy(), tensors["t01"])
    # The kernel reads ahead, on some disks by many megabytes.
    assert TENSOR_BYTES <= count_cached_bytes(path) <= FILE_BYTES // 2


@pytest.mark.parametrize("rank", [0, 5, 11])
def test_a_rank_asks_only_for_its_shards(tmp_path: Path, monkeypatch: Any, rank: int) -> None:
    layout = make_layout()
    write_checkpoint(tmp_path / "step", layout, monkeypatch, ours=True)
    sources, files = load_metadata(str(tmp_path / "step/metadata.json"))
    monkeypatch.setattr(mindformers_reshard, "get_real_rank", lambda: rank)
    wanted = {name: value for name, value in describe_all(layout)[rank].items() if "accu_grads" not in name}
    read_bytes = 0
    load = mindformers_reshard.ms_load_checkpoint

    def count(path: str, **settings: Any) -> Any:
        nonlocal read_bytes
        infos = SafetensorsFile(Path(path)).tensors.values()
        read_bytes += sum(info.size_bytes for info in infos if settings["choice_func"](info.name))
        return load(path, **settings)

    monkeypatch.setattr(mindformers_reshard, "ms_load_checkpoint", count)
    metas = get_sharded_tensor_from_strategy_metadata(param_infos=wanted, cur_npu_rank=rank)
    loaded = ReshardLoader(str(tmp_path / "step"), metas, sources, files).load()
    assert read_bytes == sum(tensor.nbytes for tensor in loaded.values())
