"""The operators of routers and experts against NumPy: sorting, selection, grouped matrix products, softmax."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.softnpu.harness import (
    DTYPES,
    FLOATS,
    LAYOUTS,
    Device,
    DeviceTensor,
    OperatorError,
    Scalar,
    Values,
    assert_rounded,
    make_zeros,
)

RNG = np.random.default_rng(0)
ENDS = (3, 3, 10)  # of the rows of three groups, the second of which is empty


def make(shape: tuple[int, ...], dtype: str = "float32", layout: str = "dense") -> DeviceTensor:
    return DeviceTensor(RNG.normal(size=shape), dtype, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("descending", [False, True])
def test_sort(device: Device, layout: str, axis: int, descending: bool) -> None:
    x = DeviceTensor(RNG.integers(0, 5, (6, 7)).astype(float), "float32", layout)  # with equal elements
    values, places = make_zeros(x.shape, "float32", layout), make_zeros(x.shape, "int64", layout)
    device.run("Sort", x, True, axis, descending, values, places)
    order = np.argsort(-x.values if descending else x.values, axis=axis, kind="stable")
    np.testing.assert_array_equal(places.values, order)
    np.testing.assert_array_equal(values.values, np.take_along_axis(x.values, order, axis))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("largest", [False, True])
def test_top_k(device: Device, layout: str, largest: bool) -> None:
    x = make((2, 5, 8), "float32", layout)
    values, places = make_zeros((2, 5, 3), "float32", layout), make_zeros((2, 5, 3), "int64", layout)
    device.run("Topk", x, 3, -1, largest, True, values, places)
    order = np.argsort(-x.values if largest else x.values, axis=-1)[..., :3]
    np.testing.assert_array_equal(places.values, order)
    np.testing.assert_array_equal(values.values, np.take_along_axis(x.values, order, -1))
    with pytest.raises(OperatorError, match="does not have 4 elements along the axis"):
        device.run("Topk", x, 4, -1, largest, True, values, places)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1])
def test_selection_by_indices(device: Device, layout: str, axis: int) -> None:
    x, indices = make((4, 5), "float32", layout), np.array([3, 0, 0, 2, 1, 3])
    shape = (6, 5) if axis == 0 else (4, 6)
    out = make_zeros(shape, "float32", layout)
    device.run("IndexSelect", x, axis, DeviceTensor(indices, "int64"), out)
    np.testing.assert_array_equal(out.values, np.take(x.values, indices, axis))
    with pytest.raises(OperatorError, match="index 7 of "):
        device.run("IndexSelect", x, axis, DeviceTensor(indices + 4, "int64"), out)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_addition_at_indices(device: Device, dtype: str, layout: str) -> None:
    x, source, indices = make((4, 5), dtype, layout), make((6, 5), dtype, layout), np.array([3, 0, 0, 2, 1, 3])
    out = make_zeros((4, 5), dtype, layout)
    device.run("IndexAdd", x, 0, DeviceTensor(indices, "int32"), source, Scalar(value=2.0), out)
    expected = x.values.copy()
    np.add.at(expected, indices, 2.0 * source.values)
    assert_rounded(out, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", [0, 1])
def test_scatter(device: Device, layout: str, reduction: int) -> None:
    x, source = make((2, 3, 6), "float32", layout), make((2, 3, 2), "float32", layout)
    indices = np.stack([RNG.permutation(6)[:2] for _ in range(6)]).reshape(2, 3, 2)
    out = make_zeros(x.shape, "float32", layout)
    device.run("Scatter", x, -1, DeviceTensor(indices, "int64"), source, reduction, out)
    expected = x.values.copy()
    added = source.values + (np.take_along_axis(expected, indices, -1) if reduction else 0)
    np.put_along_axis(expected, indices, added, -1)
    assert_rounded(out, expected)
    device.run("InplaceScatter", x, -1, DeviceTensor(indices, "int64"), source, reduction)
    assert_rounded(x, expected)


def multiply_groups(x: Values, w: Values) -> Values:
    starts = (0, *ENDS[:-1])
    return np.concatenate([x[start:end] @ w[e] for e, (start, end) in enumerate(zip(starts, ENDS, strict=True))])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_grouped_products(device: Device, dtype: str, layout: str) -> None:
    x, w, ends = make((10, 4), dtype, layout), make((3, 4, 6), dtype, layout), DeviceTensor(ENDS, "int64")
    out = make_zeros((10, 6), dtype, layout)
    expected = multiply_groups(x.values, w.values)
    nothing = [None] * 5
    device.run("GroupedMatmulV3", [x], [w], *nothing, ends, 3, 0, [out])
    assert_rounded(out, expected)
    counts = DeviceTensor(np.diff(ENDS, prepend=0), "int64")
    for group_list, kind in ((ends, 0), (counts, 1)):
        result = make_zeros((10, 6), dtype, layout)
        device.run(
            "GroupedMatmulV4",
            [x],
            [w],
            *nothing,
            None,
            group_list,
            None,
            None,
            None,
            3,
            0,
            kind,
            0,
            [result],
            None,
            None,
        )
        assert_rounded(result, expected)


def test_gradient_of_the_weights_of_groups(device: Device) -> None:
    x, gradient, ends = make((4, 10), layout="transposed"), make((10, 6)), DeviceTensor(ENDS, "int64")
    out = make_zeros((3, 4, 6), "float32")
    device.run("GroupedMatmulV3", [x], [gradient], *[None] * 5, ends, 3, 2, [out])
    starts = (0, *ENDS[:-1])
    pairs = zip(starts, ENDS, strict=True)
    assert_rounded(out, np.stack([x.values[:, start:end] @ gradient.values[start:end] for start, end in pairs]))


def test_groups_have_to_cover_the_rows(device: Device) -> None:
    x, w, out = make((10, 4)), make((2, 4, 6)), make_zeros((10, 6), "float32")
    for ends, message in (
        ((4, 9), "the groups have 9 of 10 rows"),
        ((4, 3), "3 after 4"),
        ((4, 11), "11 after 4 of 10"),
    ):
        with pytest.raises(OperatorError, match=message):
            device.run("GroupedMatmulV3", [x], [w], *[None] * 5, DeviceTensor(ends, "int64"), 3, 0, [out])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 6), (2, 4, 6), (1, 3, 4, 6)])
def test_products_of_batches(device: Device, layout: str, shape: tuple[int, ...]) -> None:
    a, shared = make(shape, layout=layout), make((6, 5), layout=layout)
    for b in (shared, make((*shape[:-2], 6, 5), layout=layout)):
        out = make_zeros((*shape[:-1], 5), "float32", layout)
        device.run("Matmul", a, b, out, 0)
        assert_rounded(out, a.values @ b.values)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, -1])
def test_softmax_and_its_gradient(device: Device, layout: str, axis: int) -> None:
    x, gradient = make((5, 7), layout=layout), make((5, 7), layout=layout)
    y, out = make_zeros((5, 7), "float32", layout), make_zeros((5, 7), "float32", layout)
    device.run("Softmax", x, axis, y)
    powers = np.exp(x.values - x.values.max(axis, keepdims=True))
    assert_rounded(y, powers / powers.sum(axis, keepdims=True))
    device.run("SoftmaxBackward", gradient, y, axis, out)
    inner = (gradient.values * y.values).sum(axis, keepdims=True)
    assert_rounded(out, y.values * (gradient.values - inner))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mean_largest_and_running_sum(device: Device, layout: str) -> None:
    x = make((3, 4, 5), layout=layout)
    for axes in ((0,), (-1,), (0, 2), ()):
        for keep in (False, True):
            mean = x.values.mean(axis=axes or None, keepdims=keep)
            out = make_zeros(np.shape(mean), "float32")
            device.run("Mean", x, axes, keep, DTYPES["float32"][0], out)
            assert_rounded(out, mean)
            device.run("Amax", x, axes, keep, out)
            np.testing.assert_array_equal(out.values, x.values.max(axis=axes or None, keepdims=keep))
    out = make_zeros(x.shape, "float32", layout)
    device.run("Cumsum", x, 1, DTYPES["float32"][0], out)
    assert_rounded(out, np.cumsum(x.values, 1))


def test_remainder_and_zeros(device: Device) -> None:
    x, out = DeviceTensor([7, 5, -7, 0], "int64"), make_zeros((4,), "int64")
    device.run("FmodScalar", x, Scalar(value=4, dtype="int64"), out)
    np.testing.assert_array_equal(out.values, [3, 1, -3, 0])
    device.run("InplaceZero", x)
    np.testing.assert_array_equal(x.values, 0)
