"""safetensors files and number formats, compared with the safetensors package; damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ascend_cpt.errors import CheckpointError
from ascend_cpt.weights.dtypes import cast, to_float32
from ascend_cpt.weights.safetensors_file import SafetensorsFile, TensorInfo, write_file

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array([1.5, -2.0], np.float16),
    "scalar": np.array(7, np.float32),
}
DTYPES = {"a.weight": "F32", "b": "F16", "scalar": "F32"}


def make_infos() -> list[TensorInfo]:
    return [TensorInfo(name=name, dtype=DTYPES[name], shape=tensor.shape) for name, tensor in TENSORS.items()]


def test_files_are_compatible_with_the_package(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_file(ours, make_infos(), TENSORS.items())
    save_file(TENSORS, theirs)
    read = load_file(ours)
    file = SafetensorsFile(theirs)
    assert read.keys() == file.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(read[name], tensor, strict=True)
        np.testing.assert_array_equal(file.read(name), tensor, strict=True)


@pytest.mark.parametrize("kept_bytes", [0, 4, 20, -1])
def test_truncated_file_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "x.safetensors"
    write_file(path, make_infos(), TENSORS.items())
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: .*truncated"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, "F8_E4M3"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}, r"4 bytes do not match shape \[4\]"),
        ({"dtype": "F32"}, "header is damaged"),
        (3, "header is damaged"),
    ],
)
def test_invalid_header_is_refused(tmp_path: Path, entry: object, named: str) -> None:
    header = json.dumps({"x": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(CheckpointError, match=named):
        SafetensorsFile(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be read"):
        SafetensorsFile(tmp_path / "x.safetensors")


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1))
def test_bfloat16_survives_float32(bits: list[int]) -> None:
    stored = np.array(bits, np.uint16)
    wide = to_float32(stored, "BF16")
    back = cast(wide, "F32", "BF16", "x")
    numbers = ~np.isnan(wide)
    np.testing.assert_array_equal(back[numbers], stored[numbers])
    assert np.isnan(to_float32(back, "BF16")[~numbers]).all()


@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1))
def test_float32_is_rounded_to_the_nearest_bfloat16(values: list[float]) -> None:
    wide = np.array(values, np.float32)
    stored = cast(wide, "F32", "BF16", "x").astype(np.int64)
    error = np.abs(to_float32(stored.astype(np.uint16), "BF16").astype(np.float64) - wide)
    for step in (-1, 1):
        neighbour = to_float32((stored + step).clip(0, 2**16 - 1).astype(np.uint16), "BF16").astype(np.float64)
        assert (error <= np.abs(np.where(np.isfinite(neighbour), neighbour, np.inf) - wide)).all()


def test_ties_are_rounded_to_even() -> None:
    # 1 + 2**-8 lies between 1 (even) and 1 + 2**-7; 1 + 3 * 2**-8 between 1 + 2**-7 (odd) and 1 + 2**-6.
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32)
    np.testing.assert_array_equal(to_float32(cast(ties, "F32", "BF16", "x"), "BF16"), [1, 1 + 2**-6])


@pytest.mark.parametrize(("value", "target"), [(1e5, "F16"), (3.4e38, "BF16")])
def test_values_beyond_the_range_are_refused_but_not_infinity(value: float, target: str) -> None:
    with pytest.raises(CheckpointError, match=rf"lm_head.*outside the range of {target}"):
        cast(np.array([1, value], np.float32), "F32", target, "lm_head")
    assert cast(np.array([np.inf], np.float32), "F32", target, "x").size == 1
