"""The metadata of folders without metadata.json, read from headers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")
pytest.importorskip("mindformers")

import mindformers.checkpoint.metadata as mindformers_metadata
from safetensors.numpy import save_file

from ascend_cpt.backend.checkpointing.header_metadata import read_metadata_from_headers, use_headers
from ascend_cpt.errors import CheckpointError
from ascend_cpt.weights.safetensors_file import TensorInfo, write_file


def measure_read_bytes() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_headers_give_what_mindformers_reads(tmp_path: Path) -> None:
    formats = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]
    formats += [np.uint16, np.uint32, np.uint64]
    (tmp_path / "one").mkdir()
    arrays = {f"x.{np.dtype(kind).name}": np.ones((2, 3), kind) for kind in formats}
    save_file({**arrays, "scalar": np.array(1.0, np.float32)}, tmp_path / "one/model.safetensors")
    hf = tmp_path / "hf"
    hf.mkdir()
    places = {}
    for number in (1, 2):
        name, file = f"layer.{number}.weight", f"model-{number:05d}-of-00002.safetensors"
        info = TensorInfo(name=name, dtype="BF16", shape=(4, number))
        write_file(hf / file, [info], [(name, np.zeros((4, number), np.uint16))])
        places[name] = file
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    save_file({"step": np.array([3], np.int32)}, tmp_path / "cpt-opt-0000000-0000001.safetensors")
    save_file({"w": np.ones((2, 2), np.float32)}, tmp_path / "cpt-model-0000000-0000001.safetensors")
    upstream = mindformers_metadata.generate_default_metadata_from_checkpoint
    for folder in (tmp_path / "one", hf, tmp_path):
        expected, found = upstream(str(folder)), read_metadata_from_headers(str(folder))
        assert found == expected and found[0]


def test_tensor_data_is_not_read(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(mindformers_metadata, "generate_default_metadata_from_checkpoint", None)
    use_headers()
    rows = 20_000_000_000 // 2 // 8192
    header = json.dumps({"w": {"dtype": "BF16", "shape": [rows, 8192], "data_offsets": [0, rows * 8192 * 2]}}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * 8192 * 2)  # 20 GB, sparse
    begin_s, begin_bytes = time.monotonic(), measure_read_bytes()
    tensors, _ = mindformers_metadata.get_metadata_of_checkpoint(str(tmp_path))
    num_bytes, duration_s = measure_read_bytes() - begin_bytes, time.monotonic() - begin_s
    assert tensors["w"][0].global_shape == (rows, 8192) and tensors["w"][0].dtype == ms.bfloat16
    assert num_bytes < 64 * 1024 and duration_s < 10, (num_bytes, duration_s)


@pytest.mark.parametrize("entry", [{"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}, {"dtype": "F32"}])
def test_what_cannot_be_loaded_is_named(tmp_path: Path, entry: dict[str, Any]) -> None:
    header = json.dumps({"w": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(CheckpointError, match="w is stored as F8_E4M3|header is damaged"):
        read_metadata_from_headers(str(tmp_path))


def test_a_tensor_in_two_files_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="contains no safetensors files"):
        read_metadata_from_headers(str(tmp_path))
    for name in ("a", "b"):
        save_file({"w": np.ones(2, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="w is also in a.safetensors"):
        read_metadata_from_headers(str(tmp_path))
