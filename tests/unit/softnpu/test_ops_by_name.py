"""Operators that MindSpore calls by name, and its own AllFinite, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.unit.softnpu.harness import FLOATS, LAYOUTS, Device, DeviceTensor, OperatorError, assert_rounded, make_zeros

ALL = (*FLOATS, "int32", "int64")


def make(shape: tuple[int, ...], dtype: str, seed: int = 0) -> DeviceTensor:
    rng = np.random.default_rng(seed)
    return DeviceTensor(rng.normal(size=shape) if dtype in FLOATS else rng.integers(-9, 9, size=shape), dtype)


@pytest.mark.parametrize("dtype", [*ALL, "bool"])
def test_moves(device: Device, dtype: str) -> None:
    for shape in ((), (0,), (3, 5), (1000,)):
        x, out, variable = make(shape, dtype), make_zeros(shape, dtype), make_zeros(shape, dtype)
        device.run_by_name("TensorMove", [x], [out])
        np.testing.assert_array_equal(out.values, x.values)
        device.run_by_name("Assign", [variable, x], [out])
        np.testing.assert_array_equal(variable.values, x.values)
        device.run_by_name("Assign", [variable, make(shape, dtype, 1)], [])
        np.testing.assert_array_equal(variable.values, make(shape, dtype, 1).values)


@pytest.mark.parametrize("dtype", ALL)
def test_sums(device: Device, dtype: str) -> None:
    for shape in ((3, 5), (1,), (700,)):
        x, y, z = (make(shape, dtype, seed) for seed in range(3))
        out = make_zeros(shape, dtype)
        device.run_by_name("AddN", [x, y, z], [out], {"N": 3})
        assert_rounded(out, x.values + y.values + z.values)
        expected = x.values + y.values
        device.run_by_name("AssignAdd", [x, y], [out])
        assert_rounded(out, expected)
        assert_rounded(x, expected)
    one = DeviceTensor([2], dtype)
    device.run_by_name("AssignAdd", [one, DeviceTensor(3, dtype)], [])
    assert one.values.tolist() == [5]


@pytest.mark.parametrize("dtype", FLOATS)
def test_products_and_quotients(device: Device, dtype: str) -> None:
    x, a, b = (make((4, 150), dtype, seed) for seed in range(3))
    factor, out = DeviceTensor([0.25], dtype), make_zeros((4, 150), dtype)
    device.run_by_name("Addcmul", [x, a, b, factor], [out])
    assert_rounded(out, x.values + factor.values * a.values * b.values)
    device.run_by_name("RealDiv", [x, make((150,), dtype, 3)], [out])
    assert_rounded(out, x.values / make((150,), dtype, 3).values)


@pytest.mark.parametrize("axes", [(1,), (-1, 0), (0, 1, 2)])
@pytest.mark.parametrize("keep_dims", [True, False])
def test_reductions(device: Device, axes: tuple[int, ...], keep_dims: bool) -> None:
    x, over = make((4, 1, 5), "float32", 1), DeviceTensor(np.array(axes), "int64")
    for name, expected in (
        ("ReduceSum", x.values.sum(axes, keepdims=keep_dims)),
        ("ReduceMean", x.values.mean(axes, keepdims=keep_dims)),
    ):
        out = make_zeros(expected.shape, "float32")
        device.run_by_name(name, [x, over], [out], {"keep_dims": int(keep_dims)})
        assert_rounded(out, expected)
        device.run_by_name("ZerosLike", [out], [out])
        assert not out.values.any()


def test_step_of_adamw(device: Device) -> None:
    """The sequence of MindFormers' AdamW for one parameter, against the formula of the paper."""
    rng = np.random.default_rng(0)
    w, g, m, v = (np.abs(rng.normal(size=(6, 7))) for _ in range(4))
    rate, beta1, beta2, epsilon, decay, step = 1e-2, 0.9, 0.95, 1e-8, 0.1, 3

    def op(name: str, *arguments: Any, by_name: bool = False) -> DeviceTensor:
        shape = np.broadcast_shapes(*(a.shape for a in arguments if isinstance(a, DeviceTensor)))
        out = make_zeros(shape, "float64")
        if by_name:
            device.run_by_name(name, list(arguments), [out])
        else:
            device.run(name, *arguments, out)
        return out

    def number(x: float) -> DeviceTensor:
        return DeviceTensor([x], "float64")

    weight, gradient, first, second = (DeviceTensor(array, "float64") for array in (w, g, m, v))
    decayed = op("Mul", weight, number(1 - rate * decay))
    fresh = op("Mul", gradient, number(1 - beta1))
    mean = op("AddN", op("Mul", first, number(beta1)), fresh, by_name=True)
    square = op("Addcmul", op("Mul", second, number(beta2)), gradient, gradient, number(1 - beta2), by_name=True)
    correction1 = 1 - op("PowTensorTensor", number(beta1), number(step)).values
    correction2 = 1 - op("PowTensorTensor", number(beta2), number(step)).values
    root = op("Sqrt", op("Div", square, DeviceTensor(correction2, "float64")))
    denominator = op("AddN", root, DeviceTensor(np.full((6, 7), epsilon), "float64"), by_name=True)
    update = op("Mul", op("Div", mean, denominator), DeviceTensor(rate / correction1, "float64"))
    expected_m, expected_v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    corrected = expected_m / (1 - beta1**step), expected_v / (1 - beta2**step)
    expected = w - rate * (corrected[0] / (np.sqrt(corrected[1]) + epsilon) + decay * w)
    np.testing.assert_allclose(decayed.values - update.values, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_split(device: Device, axis: int, dtype: str) -> None:
    x = make((4, 6, 2), dtype)
    expected = np.split(x.values, 2, axis=axis)
    parts = [make_zeros(part.shape, dtype) for part in expected]
    device.run_by_name("Split", [DeviceTensor(axis, "int32"), x], parts, {"num_split": 2})
    for part, value in zip(parts, expected, strict=True):
        np.testing.assert_array_equal(part.values, value)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("index_shape", [(), (3,), (2, 2), (0,)])
def test_gather(device: Device, index_shape: tuple[int, ...], dtype: str) -> None:
    x = make((5, 4, 3), dtype)
    for axis in (0, 1, -1):
        index = DeviceTensor(np.random.default_rng(1).integers(-3, 3, size=index_shape), "int32")
        expected = np.take(x.values, index.values, axis=axis, mode="wrap")
        out = make_zeros(expected.shape, dtype)
        device.run_by_name("GatherV2", [x, index, DeviceTensor(axis, "int64")], [out])
        np.testing.assert_array_equal(out.values, expected)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(
    ("begin", "end", "step", "masks", "where"),
    [
        ([1, 0], [4, 6], [1, 1], {}, np.s_[1:4, 0:6]),
        ([0, 5], [5, 0], [2, -2], {}, np.s_[0:5:2, 5:0:-2]),
        ([-3, 1], [-1, 99], [1, 3], {}, np.s_[-3:-1, 1:99:3]),
        ([2, 3], [0, 0], [1, 1], {"begin_mask": 1, "end_mask": 2, "shrink_axis_mask": 0}, np.s_[:0, 3:]),
        ([2, 1], [3, 4], [1, 1], {"shrink_axis_mask": 1}, np.s_[2, 1:4]),
        ([4], [0], [-1], {"end_mask": 1}, np.s_[4::-1]),
    ],
)
def test_strided_slice(
    device: Device, begin: list[int], end: list[int], step: list[int], masks: dict[str, int], where: Any, dtype: str
) -> None:
    x = make((5, 6), dtype)
    expected = x.values[where]
    out = make_zeros(expected.shape, dtype)
    bounds = [DeviceTensor(numbers, "int64") for numbers in (begin, end, step)]
    device.run_by_name("StridedSlice", [x, *bounds], [out], masks)
    np.testing.assert_array_equal(out.values, expected)
    gradient, whole = make(expected.shape, dtype), make((5, 6), dtype)
    expected_gradient = np.zeros((5, 6))
    expected_gradient[where] = gradient.values
    device.run_by_name("StridedSliceGrad", [DeviceTensor([5, 6], "int64"), *bounds, gradient], [whole], masks)
    np.testing.assert_array_equal(whole.values, expected_gradient)


def test_clip_and_scatter(device: Device) -> None:
    x, out = DeviceTensor([-5, 3, 2**40], "int64"), make_zeros((3,), "int64")
    device.run_by_name("ClipByValue", [x, DeviceTensor(0, "int64"), DeviceTensor(2**33, "int64")], [out])
    assert out.values.tolist() == [0, 3, 2**33]
    for dtype in ALL:
        variable, updates, result = make((4, 3), dtype), make((2, 3), dtype, 1), make_zeros((4, 3), dtype)
        expected = variable.values.copy()
        expected[[3, 1]] = updates.values
        device.run_by_name("ScatterNdUpdate", [variable, DeviceTensor([[3], [1]], "int64"), updates], [result])
        np.testing.assert_array_equal(variable.values, expected)
        np.testing.assert_array_equal(result.values, expected)
        expected[2, 1] = updates.values[0, 0]
        one = DeviceTensor([updates.values[0, 0]], dtype)
        device.run_by_name("ScatterNdUpdate", [variable, DeviceTensor([[2, 1]], "int64"), one], [])
        np.testing.assert_array_equal(variable.values, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_all_finite(device: Device, layout: str, dtype: str) -> None:
    flag = DeviceTensor([False], "bool")
    for bad, raised in ((1.0, False), (np.nan, True), (1.0, True)):  # several calls share one flag
        values = np.zeros(2000)
        values[-1] = bad
        device.run_all_finite(DeviceTensor(values, dtype, layout), flag)
        assert bool(flag.values[0]) is raised
    for bad in (np.inf, -np.inf):
        flag = DeviceTensor([False], "bool")
        device.run_all_finite(DeviceTensor([bad, 0.0], dtype, layout), flag)
        assert bool(flag.values[0])


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "text"),
    [
        ("NoSuchOperator", [make((2,), "float32")], [], "does not implement this operator.*float32"),
        ("Assign", [make((2,), "float32"), make((3,), "float32")], [], "differ"),
        (
            "Split",
            [DeviceTensor(0, "int32"), make((3,), "float32")],
            [make_zeros((1,), "float32")] * 2,
            "into 2 equal parts",
        ),
        (
            "GatherV2",
            [make((3,), "float32"), DeviceTensor([3], "int32"), DeviceTensor(0, "int32")],
            [make_zeros((1,), "float32")],
            "index 3",
        ),
        (
            "StridedSlice",
            [make((3,), "float32"), *[DeviceTensor([0], "int64")] * 3],
            [make_zeros((3,), "float32")],
            "stride 0 is not allowed",
        ),
        (
            "ScatterNdUpdate",
            [make((3,), "float32"), DeviceTensor([[3]], "int64"), make((1,), "float32")],
            [],
            "index 3",
        ),
        ("TensorMove", [], [], "missing"),
    ],
)
def test_errors(device: Device, name: str, inputs: list[DeviceTensor], outputs: list[DeviceTensor], text: str) -> None:
    with pytest.raises(OperatorError, match=text):
        device.run_by_name(name, inputs, outputs)
