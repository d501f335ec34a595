"""RMSNorm, rotary positions, SwiGLU: forward against formulas in NumPy, gradients against finite differences."""

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
    Values,
    assert_rounded,
    make_zeros,
)

EPSILON = 1e-5


def draw(shape: tuple[int, ...], dtype: str, layout: str = "dense", seed: int = 0) -> DeviceTensor:
    return DeviceTensor(np.random.default_rng(seed).normal(size=shape), dtype, layout)


def differentiate(function: Callable[[Values], Values], at: Values, up: Values) -> Values:
    """Return the gradient of sum(function(x) · up) at x, by central differences."""
    gradient, step = np.zeros_like(at), 1e-5
    for index in np.ndindex(at.shape):
        moved = at.copy()
        moved[index] = at[index] + step
        above = function(moved)
        moved[index] = at[index] - step
        gradient[index] = ((above - function(moved)) * up).sum() / (2 * step)
    return gradient


def normalize(x: Values, weight: Values) -> Values:
    axes = tuple(range(x.ndim - weight.ndim, x.ndim))
    return np.asarray(x / np.sqrt((x**2).mean(axis=axes, keepdims=True) + EPSILON) * weight)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(3, 2, 16), (5, 7), (0, 4), (600,)])
def test_rms_norm(device: Device, shape: tuple[int, ...], dtype: str, layout: str) -> None:
    x, weight = draw(shape, dtype, layout), draw(shape[-1:], dtype, seed=1)
    y, scale = make_zeros(shape, dtype, layout), make_zeros((*shape[:-1], 1), "float32")
    device.run("RmsNorm", x, weight, EPSILON, y, scale)
    assert_rounded(y, normalize(x.values, weight.values))
    assert_rounded(scale, 1 / np.sqrt((x.values**2).mean(axis=-1, keepdims=True) + EPSILON))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float64", *FLOATS])
def test_rms_norm_gradient(device: Device, dtype: str, layout: str) -> None:
    x, weight, up = draw((3, 4, 6), dtype, layout), draw((6,), dtype, seed=1), draw((3, 4, 6), dtype, layout, 2)
    scale = DeviceTensor(1 / np.sqrt((x.values**2).mean(axis=-1, keepdims=True) + EPSILON), "float64")
    dx, dw = make_zeros((3, 4, 6), dtype, layout), make_zeros((6,), "float32" if dtype != "float64" else dtype)
    device.run("RmsNormGrad", up, x, scale, weight, dx, dw)
    assert_rounded(dx, differentiate(lambda v: normalize(v, weight.values), x.values, up.values), slack=1e-8)
    assert_rounded(dw, differentiate(lambda v: normalize(x.values, v), weight.values, up.values), slack=1e-8)


def rotate(x: Values, cosine: Values, sine: Values, mode: int) -> Values:
    turned = np.empty_like(x)
    if mode == 0:
        half = x.shape[-1] // 2
        turned[..., :half], turned[..., half:] = -x[..., half:], x[..., :half]
    else:
        turned[..., ::2], turned[..., 1::2] = -x[..., 1::2], x[..., ::2]
    return np.asarray(x * cosine + turned * sine)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", [0, 1])
def test_rotary(device: Device, mode: int, dtype: str, layout: str) -> None:
    shape, narrow = (5, 2, 3, 8), (5, 1, 1, 8)
    x, up = draw(shape, dtype, layout), draw(shape, dtype, layout, 1)
    # Each of cosine and sine by itself: the two of a pair need not be equal.
    cosine, sine = draw(narrow, dtype, seed=2), draw(narrow, dtype, seed=3)
    y, dx = make_zeros(shape, dtype, layout), make_zeros(shape, dtype, layout)
    device.run("RotaryPositionEmbedding", x, cosine, sine, mode, y)
    assert_rounded(y, rotate(x.values, cosine.values, sine.values, mode))
    gradients = make_zeros(narrow, dtype), make_zeros(narrow, dtype)
    device.run("RotaryPositionEmbeddingGrad", up, cosine, sine, None, mode, dx, *gradients)
    expected = differentiate(lambda v: rotate(v, cosine.values, sine.values, mode), x.values, up.values)
    assert_rounded(dx, expected, slack=1e-9)


def gate(x: Values, axis: int) -> Values:
    a, b = np.split(x, 2, axis=axis)
    return np.asarray(a / (1 + np.exp(-a)) * b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_swiglu(device: Device, axis: int, dtype: str, layout: str) -> None:
    x = draw((4, 6, 10), dtype, layout)
    expected = gate(x.values, axis)
    y, dx = make_zeros(expected.shape, dtype, layout), make_zeros(x.shape, dtype, layout)
    device.run("SwiGlu", x, axis, y)
    assert_rounded(y, expected)
    up = draw(expected.shape, dtype, layout, 1)
    device.run("SwiGluGrad", up, x, axis, dx)
    assert_rounded(dx, differentiate(lambda v: gate(v, axis), x.values, up.values), slack=1e-8)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        (
            "RmsNorm",
            (
                draw((2, 4), "float32"),
                draw((3,), "float32"),
                EPSILON,
                make_zeros((2, 4), "float32"),
                make_zeros((2,), "float32"),
            ),
            "a weight of shape",
        ),
        (
            "RmsNorm",
            (
                DeviceTensor([[1, 2]], "int32"),
                draw((2,), "float32"),
                EPSILON,
                make_zeros((1, 2), "float32"),
                make_zeros((1,), "float32"),
            ),
            "int32",
        ),
        (
            "RotaryPositionEmbedding",
            (
                draw((2, 1, 1, 3), "float32"),
                draw((2, 1, 1, 3), "float32"),
                draw((2, 1, 1, 3), "float32"),
                0,
                make_zeros((2, 1, 1, 3), "float32"),
            ),
            "odd width",
        ),
        ("SwiGlu", (draw((2, 3), "float32"), -1, make_zeros((2, 1), "float32")), "no halves"),
    ],
)
def test_errors(device: Device, name: str, arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(OperatorError, match=text):
        device.run(name, *arguments)
