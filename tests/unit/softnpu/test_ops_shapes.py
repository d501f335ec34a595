"""Reductions, permutation, joining and splitting, matrix products against NumPy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.unit.softnpu.harness import (
    DTYPES,
    FLOATS,
    LAYOUTS,
    Device,
    DeviceTensor,
    OperatorError,
    assert_rounded,
    make_zeros,
)


def make(shape: tuple[int, ...], dtype: str, layout: str = "dense", seed: int = 0) -> DeviceTensor:
    rng = np.random.default_rng(seed)
    return DeviceTensor(rng.normal(size=shape) if dtype in FLOATS else rng.integers(-9, 9, size=shape), dtype, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "int64"])
def test_sum(device: Device, dtype: str, layout: str) -> None:
    x = make((5, 3, 700), dtype, layout)
    for axes in ((), (0,), (1,), (-1,), (0, 2), (1, 2), (0, 1)):
        for keep in (False, True):
            expected = x.values.sum(axis=axes or None, keepdims=keep)
            out = make_zeros(np.shape(expected), dtype, layout)
            device.run("ReduceSum", x, axes, keep, DTYPES[dtype][0], out)
            assert_rounded(out, expected)


def test_sum_of_one_and_of_nothing(device: Device) -> None:
    for shape, axes in (((), ()), ((0, 4), (0,)), ((3, 0), (1,)), ((1,), (0,))):
        x = make(shape, "float32")
        expected = x.values.sum(axis=axes or None)
        out = make_zeros(np.shape(expected), "float32")
        device.run("ReduceSum", x, axes, False, 0, out)
        assert_rounded(out, expected)


def test_sum_of_bools_as_numbers(device: Device) -> None:
    x, out = DeviceTensor([True, False, True], "bool"), make_zeros((), "float32")
    device.run("ReduceSum", x, (), False, 0, out)
    assert out.values == 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, "int32"])
def test_largest_along_an_axis(device: Device, dtype: str, layout: str) -> None:
    x = make((4, 6, 5), dtype, layout)
    for axis in (0, 1, -1):
        for keep in (False, True):
            expected = x.values.max(axis=axis, keepdims=keep)
            values, places = make_zeros(expected.shape, dtype, layout), make_zeros(expected.shape, "int64")
            device.run("MaxDim", x, axis, keep, values, places)
            np.testing.assert_array_equal(values.values, expected)
            np.testing.assert_array_equal(places.values, x.values.argmax(axis=axis, keepdims=keep))


def test_largest_is_nan_where_there_is_one(device: Device) -> None:
    x = DeviceTensor([[1.0, np.nan, 3.0]], "float32")
    values, places = make_zeros((1,), "float32"), make_zeros((1,), "int64")
    device.run("MaxDim", x, 1, False, values, places)
    assert np.isnan(values.values[0]) and places.values[0] == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, "int64", "bool", "int32"])
def test_permute(device: Device, dtype: str, layout: str) -> None:
    x = make((3, 4, 5, 2), dtype, layout)
    for order in ((3, 2, 1, 0), (0, 2, 1, 3), (1, 0, -1, 2)):
        expected = x.values.transpose(order)
        out = make_zeros(expected.shape, dtype, layout)
        device.run("Permute", x, order, out)
        np.testing.assert_array_equal(out.values, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, "int32"])
def test_cat_and_split(device: Device, dtype: str, layout: str) -> None:
    for axis in (0, 1, -1):
        sizes = (2, 5, 1)
        shapes = [tuple(size if at == axis % 3 else 3 for at in range(3)) for size in sizes]
        parts = [make(shape, dtype, layout, seed) for seed, shape in enumerate(shapes)]
        joined = np.concatenate([part.values for part in parts], axis=axis)
        out = make_zeros(joined.shape, dtype, layout)
        device.run("Cat", parts, axis, out)
        np.testing.assert_array_equal(out.values, joined)
        assert out.is_intact_outside()
        pieces = [make_zeros(shape, dtype, layout) for shape in shapes]
        device.run("SplitWithSize", out, sizes, axis, pieces)
        for piece, part in zip(pieces, parts, strict=True):
            np.testing.assert_array_equal(piece.values, part.values)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*FLOATS, "int64"])
def test_repeat(device: Device, dtype: str, layout: str) -> None:
    for shape, times in (((1,), (600,)), ((2, 3), (3, 2)), ((2, 1, 4), (1, 5, 1)), ((3,), (2, 2)), ((), (4,))):
        x = make(shape, dtype, layout)
        expected = np.tile(x.values, times)
        out = make_zeros(expected.shape, dtype, layout)
        device.run("Repeat", x, times, out)
        np.testing.assert_array_equal(out.values, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_matrix_product(device: Device, dtype: str, layout: str) -> None:
    sizes = (
        (1, 1, 1),
        (4, 12, 12),
        (5, 7, 13),
        (97, 300, 50),
        (3, 600, 400),
        (200, 9, 11),
        (0, 4, 5),
        (4, 0, 5),
        (4, 5, 0),
    )
    for m, k, n in sizes:
        for layout_b in ("dense", "transposed"):
            a, b, out = make((m, k), dtype, layout), make((k, n), dtype, layout_b, 1), make_zeros((m, n), dtype, layout)
            device.run("Mm", a, b, out, 0)
            assert_rounded(out, a.values @ b.values, slack=1e-12)


_PRODUCT = """
import hashlib, sys
from pathlib import Path
import numpy as np
from tests.unit.softnpu.harness import Device, DeviceTensor, make_zeros
rng = np.random.default_rng(0)
device, out = Device(Path(sys.argv[1])), make_zeros((301, 203), "float64")
a, b = (DeviceTensor(rng.normal(size=size), "float64") for size in ((301, 500), (500, 203)))
device.run("Mm", a, b, out, 0)
q, k, o = (DeviceTensor(rng.normal(size=(2, 4, 70, 8)), "float32") for _ in range(3))
top, total = make_zeros((2, 4, 70, 8), "float32"), make_zeros((2, 4, 70, 8), "float32")
attributes = ((), 0.3, 1.0, 70, 70, 4, "BNSD", 0, 0)
device.run("FlashAttentionScore", q, k, k, None, None, None, None, *attributes, top, total, None, o)
print(hashlib.sha256(out.storage.tobytes() + o.storage.tobytes()).hexdigest())
"""


def test_results_do_not_depend_on_threads(device: Device, library_folder: Any) -> None:
    digests = set()
    for num_threads in ("1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-c", _PRODUCT, str(library_folder)],
            env={"SOFTNPU_THREADS": num_threads, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("Mm", (make((2, 3), "float32"), make((4, 2), "float32"), make_zeros((2, 2), "float32"), 0), "multiplied"),
        ("Mm", (make((2,), "float32"), make((2, 2), "float32"), make_zeros((2, 2), "float32"), 0), "dimensions"),
        (
            "Mm",
            (make((2, 2), "float32"), make((2, 2), "float16"), make_zeros((2, 2), "float32"), 0),
            "different dtypes",
        ),
        ("Permute", (make((2, 3), "float32"), (0, 0), make_zeros((2, 2), "float32")), "is repeated"),
        (
            "Cat",
            ([make((2, 3), "float32"), make((2, 4), "float32")], 0, make_zeros((4, 3), "float32")),
            "parts of shape",
        ),
        (
            "SplitWithSize",
            (make((4,), "float32"), (2, 1), 0, [make_zeros((2,), "float32"), make_zeros((1,), "float32")]),
            "add up",
        ),
        ("Repeat", (make((2,), "float32"), (2,), make_zeros((3,), "float32")), "output has shape"),
        ("ReduceSum", (make((2, 3), "float32"), (5,), False, 0, make_zeros((2,), "float32")), "axis 5 is out of range"),
        (
            "MaxDim",
            (make((2, 3), "float32"), 1, False, make_zeros((3,), "float32"), make_zeros((2,), "int64")),
            "output has shape",
        ),
    ],
)
def test_errors(device: Device, name: str, arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(OperatorError, match=text):
        device.run(name, *arguments)
