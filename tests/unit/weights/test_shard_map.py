"""metadata.json of a delivered checkpoint is checked before MindFormers' loader reads it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.errors import CheckpointError
from ascend_cpt.weights.shard_map import check_shard_map

LAYOUT = {
    "device_matrix": [2, 1],
    "tensor_map": [1, -1],
    "interleaved_parallel": False,
    "alias_name": ["dp", "tp"],
    "rank_list": [0, 1],
}
TENSOR = {
    "properties": {"dtype": "Float32", "replica_id": 0, "allow_shape_mismatch": False, "allow_to_save": True},
    "global_shape": [4, 3],
    "axis_fragmentations": [2, 1],
    "layout": LAYOUT,
    "chunk": [{"global_offset": [index], "local_shape": [2, 3]} for index in range(2)],
}
GOOD = {
    "state_dict_metadata": {"w": TENSOR, "global_step": {**TENSOR, "global_shape": [], "axis_fragmentations": [],
                            "chunk": [{"global_offset": [0], "local_shape": []}]}},
    "storage_data": {
        "('w', (0,))": [{"file_name": "cpt-model-0000000-0000002.safetensors", "storage_rank": 0, "rank_group": [0]}],
        "('w', (1,))": [{"file_name": "cpt-model-0000001-0000002.safetensors", "storage_rank": 1, "rank_group": [1]}],
        "('global_step', (0,))": [{"file_name": "cpt-opt-0000000-0000002.safetensors", "storage_rank": 0}],
    },
}  # fmt: skip


def check(tmp_path: Path, metadata: Any) -> None:
    path = tmp_path / "metadata.json"
    path.write_bytes(metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode())
    check_shard_map(path)


def test_what_the_writer_writes_is_accepted(tmp_path: Path) -> None:
    check(tmp_path, GOOD)


def set_tensor(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata["state_dict_metadata"]["w"].update({key: value})


def set_layout(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata["state_dict_metadata"]["w"]["layout"].update({key: value})


def set_place(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda metadata: metadata["storage_data"]["('w', (0,))"][0].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_place("file_name", "../../etc/x.safetensors"), "is not a plain file name"),
        (set_place("file_name", "/etc/x.safetensors"), "is not a plain file name"),
        (set_place("file_name", None), "is not a plain file name"),
        (set_place("storage_rank", -1), "a rank is not a number"),
        (set_place("rank_group", [2**40]), "a rank is not a number"),
        (set_tensor("global_shape", [2**62, 3]), "not two lists of equal length"),
        (set_tensor("global_shape", [4]), "not two lists of equal length"),
        (set_tensor("global_shape", [5, 3]), "not a multiple"),
        (set_tensor("axis_fragmentations", [0, 1]), "not two lists of equal length"),
        (set_tensor("axis_fragmentations", [1.5, 1]), "not two lists of equal length"),
        (set_tensor("properties", {"dtype": 3}), "no dtype"),
        (set_tensor("chunk", []), "not a list of at most 2 slices"),
        (set_tensor("chunk", [{"global_offset": [2], "local_shape": [2, 3]}]), "not one number below 2"),
        (set_tensor("chunk", [{"global_offset": [0], "local_shape": [2**40, 3]}]), "local_shape of a slice is not"),
        (set_tensor("chunk", [1]), "not one number below 2"),
        (set_tensor("layout", dict(reversed(LAYOUT.items()))), "in this order"),
        (set_layout("rank_list", [0, 1, 2]), "rank_list is not a list of as many ranks"),
        (set_layout("device_matrix", [2**30, 2**30]), "device_matrix is not a list of sizes"),
        (set_layout("tensor_map", [[7], -1]), "tensor_map or interleaved_parallel"),
        (set_layout("alias_name", ["dp", "\x1b[31m"]), "alias_name is not a list"),
        (lambda metadata: metadata["storage_data"].update({"__import__('os')": []}), "is not the id of a slice"),
        (lambda metadata: metadata["storage_data"].pop("('global_step', (0,))"), "has no file with 'global_step'"),
        (lambda metadata: metadata.pop("storage_data"), "has no state_dict_metadata or storage_data"),
    ],
)
def test_a_bad_map_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    metadata = copy.deepcopy(GOOD)
    change(metadata)
    with pytest.raises(CheckpointError, match=rf"metadata.json: damaged: .*{message}.*; copy it again") as caught:
        check(tmp_path, metadata)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("text", [b"", b"[" * 5000, b"[1]", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff"])
def test_text_that_is_no_map(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"metadata.json: damaged"):
        check(tmp_path, text)
