"""Element-wise operators against NumPy in float64: each result is rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unit.softnpu.harness import (
    FLOATS,
    LAYOUTS,
    Device,
    DeviceTensor,
    OperatorError,
    Scalar,
    assert_rounded,
    make_zeros,
)

Formula = Callable[..., Any]
SHAPES = ((), (1,), (0, 3), (5, 7), (2, 3, 5), (600,))


def make(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, layout: str = "dense") -> DeviceTensor:
    values = rng.normal(size=shape) * 2 if dtype in FLOATS else rng.integers(1, 9, size=shape)
    return DeviceTensor(values, dtype, layout)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


UNARY: dict[str, Formula] = {
    "Neg": lambda x: -x,
    "Abs": np.abs,
    "Relu": lambda x: np.maximum(x, 0),
    "Exp": np.exp,
    "Log": lambda x: np.log(np.abs(x)),
    "Sqrt": lambda x: np.sqrt(np.abs(x)),
    "Rsqrt": lambda x: 1 / np.sqrt(np.abs(x)),
    "Reciprocal": lambda x: 1 / x,
    "Sin": np.sin,
    "Cos": np.cos,
    "Silu": lambda x: x * sigmoid(x),
}
BINARY: dict[str, Formula] = {
    "Mul": lambda x, y: x * y,
    "Div": lambda x, y: x / y,
    "FloorDivide": lambda x, y: np.floor(x / y),
    "PowTensorTensor": lambda x, y: np.abs(x) ** y,
    "Minimum": np.minimum,
    "Maximum": np.maximum,
    "SiluBackward": lambda g, x: g * sigmoid(x) * (1 + x * (1 - sigmoid(x))),
}
COMPARISONS: dict[str, Formula] = {
    "EqTensor": np.equal,
    "NeTensor": np.not_equal,
    "GeTensor": np.greater_equal,
    "LeTensor": np.less_equal,
    "LtTensor": np.less,
    "GtTensor": np.greater,
    "LogicalXor": np.logical_xor,
    "LogicalAnd": np.logical_and,
    "LogicalOr": np.logical_or,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_unary(device: Device, name: str, dtype: str, layout: str) -> None:
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        values = rng.normal(size=shape) * 2
        x = DeviceTensor(np.abs(values) if name in ("Log", "Sqrt", "Rsqrt") else values, dtype, layout)
        out = make_zeros(shape, dtype, layout)
        device.run(name, x, out)
        assert_rounded(out, UNARY[name](x.values))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BINARY)
def test_binary(device: Device, name: str, dtype: str, layout: str) -> None:
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        x, y = make(rng, shape, dtype, layout), make(rng, shape, dtype)
        if name == "PowTensorTensor":
            x = DeviceTensor(np.abs(x.values), dtype, layout)
        out = make_zeros(shape, dtype, layout)
        device.run(name, x, y, out)
        assert_rounded(out, BINARY[name](x.values, y.values))


@pytest.mark.parametrize("shapes", [((3, 1, 4), (5, 1)), ((4,), (2, 3, 4)), ((2, 3), ()), ((1,), (6,))])
def test_broadcasting(device: Device, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(2)
    for layout in LAYOUTS:
        x, y = make(rng, shapes[0], "float32", layout), make(rng, shapes[1], "float32", layout)
        out = make_zeros(np.broadcast_shapes(*shapes), "float32", layout)
        device.run("Mul", x, y, out)
        assert_rounded(out, x.values * y.values)


@pytest.mark.parametrize("name", ["Add", "Sub"])
@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "int64"])
def test_addition_with_a_factor(device: Device, name: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    for layout in LAYOUTS:
        x, y, out = make(rng, (3, 5), dtype, layout), make(rng, (5,), dtype), make_zeros((3, 5), dtype, layout)
        device.run(name, x, y, Scalar(value=2.0), out)
        assert_rounded(out, x.values + (2 if name == "Add" else -2) * y.values)


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "int64", "bool"])
def test_comparisons(device: Device, name: str, dtype: str) -> None:
    rng = np.random.default_rng(4)
    for layout in LAYOUTS:
        x = DeviceTensor(rng.integers(0, 2, size=(9, 4)), dtype, layout)
        y = DeviceTensor(rng.integers(0, 2, size=(9, 4)), dtype)
        out = make_zeros((9, 4), "bool", layout)
        device.run(name, x, y, out)
        np.testing.assert_array_equal(out.values, COMPARISONS[name](x.values, y.values))


def test_logical_not(device: Device) -> None:
    x, out = DeviceTensor([0, 1, 1], "bool"), make_zeros((3,), "bool")
    device.run("LogicalNot", x, out)
    assert out.values.tolist() == [True, False, False]


def test_is_finite(device: Device) -> None:
    x, out = DeviceTensor([0, np.inf, -np.inf, np.nan], "float32"), make_zeros((4,), "bool")
    device.run("IsFinite", x, out)
    assert out.values.tolist() == [True, False, False, False]


def test_nan_and_infinity(device: Device) -> None:
    values = DeviceTensor([np.nan, np.inf, -np.inf, 1.0, -0.0, 1000.0, -1000.0], "float32")
    out = make_zeros((7,), "float32")
    with np.errstate(over="ignore"):
        device.run("Exp", values, out)
        np.testing.assert_array_equal(out.values, np.exp(values.values).astype(np.float32))
    device.run("Maximum", values, DeviceTensor(np.zeros(7), "float32"), out)
    np.testing.assert_array_equal(out.values, np.maximum(values.values, 0.0))


@pytest.mark.parametrize("dtype", FLOATS)
def test_scalars(device: Device, dtype: str) -> None:
    rng = np.random.default_rng(5)
    for layout in LAYOUTS:
        x, out = make(rng, (4, 6), dtype, layout), make_zeros((4, 6), dtype, layout)
        device.run("Muls", x, Scalar(value=1.5), out)
        assert_rounded(out, x.values * 1.5)
        device.run("Divs", x, Scalar(value=3.0), out)
        assert_rounded(out, x.values / 3.0)


@pytest.mark.parametrize("source", [*FLOATS, "int32", "int64", "bool", "uint8"])
@pytest.mark.parametrize("target", [*FLOATS, "int32", "int64", "bool", "uint8"])
def test_cast(device: Device, source: str, target: str) -> None:
    rng = np.random.default_rng(6)
    code = {"float32": 0, "float16": 1, "bfloat16": 27, "int32": 3, "int64": 9, "bool": 12, "uint8": 4}[target]
    for layout in LAYOUTS:
        x = DeviceTensor(np.abs(rng.normal(size=(7, 9))) * 50, source, layout)
        out = make_zeros((7, 9), target, layout)
        device.run("Cast", x, code, out)
        if target in FLOATS:
            assert_rounded(out, x.values)
        else:
            np.testing.assert_array_equal(out.values, x.values.astype(out.values.dtype))


def test_casts_keep_long_integers_and_hold_at_the_limits(device: Device) -> None:
    long = np.array([2**53 + 1, -(2**62) - 3, 5])
    out = make_zeros((3,), "int64")
    device.run("Cast", DeviceTensor(long, "int64"), 9, out)
    np.testing.assert_array_equal(out.values, long)
    whole = make_zeros((4,), "int32")
    device.run("Cast", DeviceTensor([3e9, -3e9, np.nan, -1.7], "float32"), 3, whole)
    assert whole.values.tolist() == [2**31 - 1, -(2**31), 0, -1]


@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_rounding_is_to_even_once(device: Device, target: str) -> None:
    # Just above the middle between two numbers: rounded to float32 first, it would become the tie and go down.
    spacing = 2.0**-10 if target == "float16" else 2.0**-7
    middle = 1 + spacing / 2
    values = np.array(
        [middle, middle + 2.0**-40, middle - 2.0**-40, 65519.99, 65520.0, 2.0**-25, 3e-8, 1e-41, -0.0] * 2
    )
    out = make_zeros((18,), target)
    device.run("Cast", DeviceTensor(values, "float64"), 27 if target == "bfloat16" else 1, out)
    assert out.values[:3].tolist() == [1.0, 1 + spacing, 1.0]
    assert_rounded(out, values, slack=0)


def test_selection(device: Device) -> None:
    rng = np.random.default_rng(7)
    for layout in LAYOUTS:
        mask = DeviceTensor(rng.integers(0, 2, size=(6, 1)), "bool", layout)
        x, y, out = (
            make(rng, (6, 4), "float32", layout),
            make(rng, (1,), "float32"),
            make_zeros((6, 4), "float32", layout),
        )
        device.run("SWhere", mask, x, y, out)
        np.testing.assert_array_equal(out.values, np.where(mask.values, x.values, y.values))


def test_results_over_their_inputs(device: Device) -> None:
    x = DeviceTensor(np.arange(1200.0), "float32")
    expected = x.values * x.values
    device.run("Mul", x, x, x)
    assert_rounded(x, expected)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        (
            "Mul",
            (DeviceTensor([1.0, 2.0], "float32"), DeviceTensor([1.0] * 3, "float32"), make_zeros((3,), "float32")),
            "broadcast",
        ),
        (
            "Mul",
            (DeviceTensor([1.0], "float32"), DeviceTensor([1.0], "float32"), make_zeros((2,), "float32")),
            "output has shape",
        ),
        ("Div", (DeviceTensor([1], "int32"), DeviceTensor([1], "int32"), make_zeros((1,), "int32")), "int32"),
        ("Cast", (DeviceTensor([1.0], "float32"), 1, make_zeros((1,), "float32")), "requested dtype"),
        (
            "EqTensor",
            (DeviceTensor([1.0], "float32"), DeviceTensor([1.0], "float32"), make_zeros((1,), "float32")),
            "float32",
        ),
        ("Mul", (None, DeviceTensor([1.0], "float32"), make_zeros((1,), "float32")), "missing"),
    ],
)
def test_errors(device: Device, name: str, arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(OperatorError, match=text):
        device.run(name, *arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "target_dtype"), [("float32", "float32"), ("float32", "bfloat16"), ("int32", "int64")]
)
def test_copy_into_a_tensor(device: Device, dtype: str, target_dtype: str, layout: str) -> None:
    x = DeviceTensor(np.arange(-6, 6).reshape(3, 1, 4), dtype, layout)
    for shape in ((3, 1, 4), (3, 5, 4)):
        target = make_zeros(shape, target_dtype, layout)
        device.run("InplaceCopy", target, x)
        np.testing.assert_array_equal(target.values, np.broadcast_to(x.values, shape))
        assert target.is_intact_outside()
