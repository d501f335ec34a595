"""Model and checkpoint folders from elsewhere: every bad header, index and shard map gives one line."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ascend_cpt.errors import CheckpointError, CptError
from ascend_cpt.weights.hf_folder import INDEX_NAME, WEIGHTS_NAME, HfFolder
from ascend_cpt.weights.mindformers_folder import METADATA_NAME, MindFormersFolder
from ascend_cpt.weights.safetensors_file import SafetensorsFile

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
ODD_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def write_header(path: Path, header: object, *, data_bytes: int = 64) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(data_bytes)))
    return path


def entry(begin: object, end: object, shape: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(-8, 0, [2])}, "'a': its data_offsets are not two increasing offsets"),
        ({"a": entry(8, 0, [2])}, "'a': its data_offsets are not two increasing offsets"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, "the data of 'a' and 'b' overlap"),
        ({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, "the data of 'a' and 'b' overlap"),
        ({"a": entry(60, 68, [2])}, "truncated"),
        ({"a": entry(0, 2**62, [2**60])}, "truncated"),
        ({"a": entry(0, 2**64, [2])}, "not two increasing offsets"),
        ({"a": entry(0, 0, [2**32, 2**32])}, r"0 bytes do not match shape"),
        ({"a": entry(0, 8, [-1, -2])}, "its shape is not a list of at most 32 sizes"),
        ({"a": entry(0, 4, [1] * 33)}, "its shape is not a list of at most 32 sizes"),
        ({"a": entry(0, True, [1])}, "not two increasing offsets"),
        ({"a": entry(0, 8.0, [2])}, "not two increasing offsets"),
        ({"a": entry(0, 8, "2")}, "its shape is not a list"),
        ({"a": entry(0, 8, [2], dtype=["F32"])}, "'a': no dtype"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, "not two increasing offsets"),
        ([1], "is not a JSON object"),
        (b"[" * 5000, "nested deeper than 64"),
        (b'{"a":' * 5000, "nested deeper than 64"),
        (b'{"a": 1, "a": 2}', "has the name 'a' twice"),
        (b"\0", "not valid JSON"),
        (b'{"\\ud800": 1}', "not valid UTF-8"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, header: object, message: str) -> None:
    path = write_header(tmp_path / "x.safetensors", header)
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_good_header_with_tensors_in_any_order(tmp_path: Path) -> None:
    path = write_header(
        tmp_path / "x.safetensors",
        {"__metadata__": {"format": "pt"}, "b": entry(8, 16, [2]), "none": entry(8, 8, [0]), "a": entry(0, 8, [2, 1])},
    )
    data = np.frombuffer(bytes(range(16)), "<f4")
    file = SafetensorsFile(path)
    np.testing.assert_array_equal(file.read("a"), data[:2].reshape(2, 1))
    np.testing.assert_array_equal(file.read("b"), data[2:])
    path.write_bytes(path.read_bytes()[:-56])
    with pytest.raises(CheckpointError, match="was truncated while it was being read"):
        file.read("b")


@given(st.dictionaries(st.text(max_size=5), ODD_VALUES | st.builds(entry, ODD_VALUES, ODD_VALUES, ODD_VALUES)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_header_gives_a_traceback(tmp_path: Path, header: dict[str, Any]) -> None:
    path = write_header(tmp_path / "x.safetensors", header)
    try:
        file = SafetensorsFile(path)
        for name in file.tensors:
            file.read(name)
    except CheckpointError:
        pass


def copy_model(tmp_path: Path, places: object) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(REFERENCE / "llama3", folder)
    shutil.move(folder / WEIGHTS_NAME, folder / "model-00001-of-00001.safetensors")
    text = places if isinstance(places, str) else json.dumps({"weight_map": places})
    (folder / INDEX_NAME).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "../outside.safetensors"}, "'../outside.safetensors' is not a plain file name"),
        ({"a": "/outside.safetensors"}, "'/outside.safetensors' is not a plain file name"),
        ({"a": "sub/inside.safetensors"}, "is not a plain file name"),
        ({"a": "x\0y"}, "is not a plain file name"),
        ({"a": 3}, "3 is not a plain file name"),
        ({"a": ["x"]}, "a list is not a plain file name"),
        ([1], "no weight_map"),
        ("[" * 5000, "nested deeper than 64"),
        ("3", "is not a JSON object"),
    ],
)
def test_an_index_names_files_of_its_folder_only(tmp_path: Path, places: object, message: str) -> None:
    folder = copy_model(tmp_path, places)
    shutil.copy(folder / "model-00001-of-00001.safetensors", tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        HfFolder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": "2"},
        {"head_dim": [16]},
        {"head_dim": -1},
        {"rms_norm_eps": "small"},
        {"rms_norm_eps": {}},
        {"rope_theta": [1]},
        {"rope_theta": "x"},
        {"rope_scaling": 3},
        {"rope_scaling": [1]},
        {"hidden_size": True},
        {"hidden_act": [1]},
    ],
)
def test_a_field_of_another_type_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    shutil.copytree(REFERENCE / "llama3", tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(CptError, match=next(iter(change))) as caught:
        HfFolder(tmp_path / "model")
    assert "\n" not in str(caught.value)


def make_sliced(folder: Path) -> dict[str, Any]:
    """Write a tensor in two slices; return the shard map."""
    folder.mkdir()
    for rank in range(2):
        write_header(folder / f"cpt-model-{rank:07d}-0000002.safetensors", {"w": entry(0, 8, [2])})
    return {
        "state_dict_metadata": {
            "w": {
                "global_shape": [4],
                "axis_fragmentations": [2],
                "layout": {"interleaved_parallel": False},
                "chunk": [{"global_offset": [0]}, {"global_offset": [1]}],
            }
        },
        "storage_data": {
            f"('w', ({rank},))": [{"file_name": f"cpt-model-{rank:07d}-0000002.safetensors"}] for rank in range(2)
        },
    }


def test_a_shard_map_names_files_of_its_folder_only(tmp_path: Path) -> None:
    metadata = make_sliced(tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / METADATA_NAME
    path.write_text(json.dumps(metadata))
    assert MindFormersFolder(path.parent).read("w").shape == (4,)
    shutil.copy(path.parent / "cpt-model-0000000-0000002.safetensors", tmp_path)
    metadata["storage_data"]["('w', (0,))"][0]["file_name"] = "../cpt-model-0000000-0000002.safetensors"
    path.write_text(json.dumps(metadata))
    with pytest.raises(CheckpointError, match="metadata.json: damaged: .*is not a plain file name"):
        MindFormersFolder(path.parent)


@pytest.mark.parametrize(
    "key", ["(" * 100_000, "('w', (0,)) + 1", "__import__('os')", "('w', (99999999999999999999,))", ""]
)
def test_the_ids_of_slices_are_not_evaluated(tmp_path: Path, key: str) -> None:
    metadata = make_sliced(tmp_path / "checkpoint")
    metadata["storage_data"][key] = []
    (tmp_path / "checkpoint" / METADATA_NAME).write_text(json.dumps(metadata))
    with pytest.raises(CheckpointError, match="is not the id of a slice") as caught:
        MindFormersFolder(tmp_path / "checkpoint")
    assert len(str(caught.value)) < 400


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_shard_map_gives_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    metadata = copy.deepcopy(make_sliced(folder))
    node: Any = metadata
    while isinstance(node, dict | list) and node:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if data.draw(st.booleans()):
            node[key] = data.draw(ODD_VALUES)
            break
        node = node[key]
    (folder / METADATA_NAME).write_text(json.dumps(metadata))
    try:
        opened = MindFormersFolder(folder)
        for name in opened.tensors:
            opened.read(name)
    except CheckpointError as error:
        assert "\n" not in str(error)
