"""Embedding, its gradient, one-hot vectors, and a cross entropy made of the operators that MindFormers uses."""

from __future__ import annotations

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
    Values,
    assert_rounded,
    make_zeros,
)


def draw(shape: tuple[int, ...], dtype: str, layout: str = "dense", seed: int = 0) -> DeviceTensor:
    return DeviceTensor(np.random.default_rng(seed).normal(size=shape), dtype, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("index_dtype", ["int32", "int64"])
def test_embedding(device: Device, dtype: str, index_dtype: str, layout: str) -> None:
    table = draw((11, 5), dtype, layout)
    for shape in ((7,), (2, 3), (0,)):
        index = DeviceTensor(np.random.default_rng(1).integers(0, 11, size=shape), index_dtype, layout)
        out = make_zeros((*shape, 5), dtype, layout)
        device.run("Embedding", table, index, out)
        np.testing.assert_array_equal(out.values, table.values[index.values])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_embedding_gradient(device: Device, dtype: str, layout: str) -> None:
    index = DeviceTensor(np.random.default_rng(1).integers(0, 6, size=(4, 8)), "int32", layout)
    up = draw((4, 8, 5), dtype, layout)
    # -1 as MindSpore hands it on, cut to 32 bits: no index is left out.
    for padding in (2**32 - 1, 3):
        out, expected = make_zeros((6, 5), dtype, layout), np.zeros((6, 5))
        device.run("EmbeddingDenseBackward", up, index, 6, padding, False, out)
        np.add.at(expected, index.values, up.values)
        if padding == 3:
            expected[3] = 0
        assert_rounded(out, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("dtype", ["int32", "float32", "float16", "bfloat16"])
def test_one_hot(device: Device, dtype: str, axis: int, layout: str) -> None:
    # 9 and -3 belong to other pieces of the vocabulary.
    index = DeviceTensor([[0, 5, 9], [-3, 2, 2]], "int32", layout)
    expected = np.moveaxis(np.where(index.values[..., None] == np.arange(6), 3, 1), -1, axis)
    out = make_zeros(expected.shape, dtype, layout)
    device.run("OneHot", index, 6, DeviceTensor(3, dtype), DeviceTensor(1, dtype), axis, out)
    np.testing.assert_array_equal(out.values, expected)
    assert out.is_intact_outside()


def compute_loss(device: Device, logits: Values, labels: Values, pieces: list[slice]) -> tuple[Values, Values]:
    """Return losses and the gradient of their sum, with the vocabulary in pieces that meet only in maximum and sums."""
    num, parts, tops, sums, losses = len(labels), [], [], [], []
    for piece in pieces:
        part, top = DeviceTensor(logits[:, piece], "float64"), make_zeros((num, 1), "float64")
        device.run("MaxDim", part, 1, True, top, make_zeros((num, 1), "int64"))
        parts.append(part)
        tops.append(top.values)
    top = DeviceTensor(np.max(tops, axis=0), "float64")
    for part in parts:
        exponential, total = make_zeros(part.shape, "float64"), make_zeros((num, 1), "float64")
        device.run("Sub", part, top, Scalar(value=1.0), part)
        device.run("Exp", part, exponential)
        device.run("ReduceSum", exponential, (-1,), True, 11, total)
        sums.append(total.values)
    log = make_zeros((num, 1), "float64")
    device.run("Log", DeviceTensor(np.sum(sums, axis=0), "float64"), log)
    gradients = []
    for part, piece in zip(parts, pieces, strict=True):
        hot = make_zeros(part.shape, "float64")
        device.run("Sub", part, log, Scalar(value=1.0), part)
        shifted = DeviceTensor(labels - piece.start, "int32")
        device.run("OneHot", shifted, part.shape[1], DeviceTensor(1, "float64"), DeviceTensor(0, "float64"), -1, hot)
        product, loss = make_zeros(part.shape, "float64"), make_zeros((num,), "float64")
        device.run("Mul", part, hot, product)
        device.run("Neg", product, product)
        device.run("ReduceSum", product, (-1,), False, 11, loss)
        losses.append(loss.values)
        device.run("Exp", part, product)
        device.run("Sub", product, hot, Scalar(value=1.0), product)
        gradients.append(product.values)
    return np.sum(losses, axis=0), np.concatenate(gradients, axis=1)


def test_cross_entropy_whole_and_by_pieces_of_the_vocabulary(device: Device) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(9, 20)) * 4, rng.integers(0, 20, size=9)
    exponentials = np.exp(logits)
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    for pieces in ([slice(0, 20)], [slice(0, 10), slice(10, 20)], [slice(0, 4), slice(4, 20)]):
        losses, gradient = compute_loss(device, logits, labels, pieces)
        np.testing.assert_allclose(losses, -np.log(softmax[np.arange(9), labels]), rtol=1e-12)
        np.testing.assert_allclose(gradient, softmax - np.eye(20)[labels], atol=1e-14)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("Embedding", (draw((4, 2), "float32"), DeviceTensor([4], "int32"), make_zeros((1, 2), "float32")), "index 4"),
        (
            "Embedding",
            (draw((4, 2), "float32"), DeviceTensor([1.0], "float32"), make_zeros((1, 2), "float32")),
            "dtype",
        ),
        (
            "EmbeddingDenseBackward",
            (draw((1, 2), "float32"), DeviceTensor([-1], "int32"), 4, 2**32 - 1, False, make_zeros((4, 2), "float32")),
            "index -1",
        ),
        (
            "OneHot",
            (
                DeviceTensor([1], "int32"),
                4,
                DeviceTensor([1, 1], "int32"),
                DeviceTensor(0, "int32"),
                -1,
                make_zeros((1, 4), "int32"),
            ),
            "one element",
        ),
    ],
)
def test_errors(device: Device, name: str, arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(OperatorError, match=text):
        device.run(name, *arguments)
