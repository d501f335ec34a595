"""Flash attention and its gradient against attention written out in NumPy, in every layout and mask that is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.unit.softnpu.harness import FLOATS, Device, DeviceTensor, OperatorError, Values, make_zeros

FAR = 2**31 - 1
SCALE = 0.35
COMPRESSED = DeviceTensor(np.triu(np.ones((2048, 2048)), k=1), "uint8")
TOLERANCES = {
    "float32": 3e-6,
    "float16": 3e-3,
    "bfloat16": 3e-2,
}  # of the output's rounding, and its use in the gradient


def attend(q: Values, k: Values, v: Values, hidden: Values) -> tuple[Values, Values, Values]:
    """Return output, maximum and sum for [batch, heads, rows, width]; `hidden` broadcasts to [.., query, key]."""
    group = q.shape[1] // k.shape[1]
    scores = q @ np.repeat(k, group, axis=1).swapaxes(-1, -2) * SCALE
    scores = np.where(hidden, -np.inf, scores)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.where(hidden, 0, np.exp(scores - np.where(np.isfinite(top), top, 0)))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / np.where(total == 0, 1, total)
    return weights @ np.repeat(v, group, axis=1), top, total


def differentiate(q: Values, k: Values, v: Values, hidden: Values, up: Values) -> tuple[Values, Values, Values]:
    """Return the gradients of sum(output · up), from the matrix of weights."""
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.where(hidden, -np.inf, q @ wide_k.swapaxes(-1, -2) * SCALE)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.where(hidden, 0, np.exp(scores - np.where(np.isfinite(top), top, 0)))
    total = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(total == 0, 1, total)
    d_weights = up @ wide_v.swapaxes(-1, -2)
    d_scores = weights * (d_weights - (d_weights * weights).sum(axis=-1, keepdims=True)) * SCALE

    def gather(wide: Values) -> Values:
        batch, heads, rows, width = wide.shape
        return np.asarray(wide.reshape(batch, heads // group, group, rows, width).sum(axis=2))

    return d_scores @ wide_k, gather(d_scores.swapaxes(-1, -2) @ q), gather(weights.swapaxes(-1, -2) @ up)


def test_reference_gradient_by_finite_differences() -> None:
    rng = np.random.default_rng(0)
    q, k, v, up = (rng.normal(size=(1, heads, 3, 2)) for heads in (2, 1, 1, 2))
    hidden = np.triu(np.ones((3, 3), dtype=bool), k=1)
    found = differentiate(q, k, v, hidden, up)
    for which, gradient in enumerate(found):
        arrays = [q, k, v]
        for index in np.ndindex(arrays[which].shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = [array.copy() for array in arrays]
                moved[which][index] += step
                sides.append((attend(moved[0], moved[1], moved[2], hidden)[0] * up).sum())
            np.testing.assert_allclose((sides[0] - sides[1]) / 2e-6, gradient[index], atol=1e-8)


def arrange(values: Values, layout: str) -> Values:
    """Return [batch, heads, rows, width] in a layout."""
    batch, heads, rows, width = values.shape
    if layout == "BNSD":
        return values
    if layout == "BSND":
        return values.transpose(0, 2, 1, 3)
    if layout == "BSH":
        return values.transpose(0, 2, 1, 3).reshape(batch, rows, heads * width)
    if layout == "SBH":
        return values.transpose(2, 0, 1, 3).reshape(rows, batch, heads * width)
    assert layout == "TND" and batch == 1
    return values[0].transpose(1, 0, 2)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call: sizes, layout, mask as the operator takes it, and what it hides."""

    layout: str
    sizes: tuple[int, int, int, int, int, int]  # batch, heads, heads of keys, query rows, key rows, width
    hidden: npt.NDArray[np.bool_]
    mask: DeviceTensor | None = None
    before: int = FAR
    after: int = 0
    sparse: int = 0
    documents: tuple[list[int], list[int]] | None = None


def check(device: Device, case: Case, dtype: str, memory: str = "dense") -> None:
    """Run forward and gradient and compare all their results."""
    batch, heads, kv_heads, q_rows, k_rows, width = case.sizes
    rng = np.random.default_rng(3)
    shapes = {
        "q": (batch, heads, q_rows, width),
        "k": (batch, kv_heads, k_rows, width),
        "v": (batch, kv_heads, k_rows, width),
    }
    draws = {name: rng.normal(size=shape) for name, shape in {**shapes, "up": shapes["q"]}.items()}
    tensors = {name: DeviceTensor(arrange(values, case.layout), dtype, memory) for name, values in draws.items()}
    exact = {name: DeviceTensor(values, dtype).values for name, values in draws.items()}
    packed = case.layout == "TND"
    statistics = (q_rows, heads, 8) if packed else (batch, heads, q_rows, 8)
    top, total = make_zeros(statistics, "float32"), make_zeros(statistics, "float32")
    softmax, out = make_zeros((1,), dtype), make_zeros(tensors["q"].shape, dtype, memory)
    documents = case.documents or ()
    common = (SCALE, 1.0, case.before, case.after, heads, case.layout, 0, case.sparse)
    inputs = [tensors[name] for name in ("q", "k", "v")]
    masks = (None, None, None, case.mask)
    results = (top, total, softmax, out)
    name = "FlashAttentionVarLenScore" if packed else "FlashAttentionScore"
    device.run(name, *inputs, *masks, (), *documents, *common, *results)
    expected, expected_top, expected_total = attend(exact["q"], exact["k"], exact["v"], case.hidden)
    assert_near(out.values, arrange(expected, case.layout), dtype)
    seen = expected_total > 0
    found_top, found_total = top.values, total.values
    if packed:
        found_top, found_total = (found.transpose(1, 0, 2)[None] for found in (found_top, found_total))
    for copy in range(8):
        np.testing.assert_allclose(found_top[..., copy : copy + 1][seen], expected_top[seen], rtol=2e-7, atol=1e-9)
        np.testing.assert_allclose(found_total[..., copy : copy + 1], expected_total, rtol=2e-7)
    gradients = [make_zeros(tensors[name].shape, dtype, memory) for name in ("q", "k", "v")]
    name = "FlashAttentionUnpaddingScoreGrad" if packed else "FlashAttentionScoreGrad"
    outputs = (*gradients, make_zeros((0,), dtype))
    device.run(name, *inputs, tensors["up"], *masks, *results, (), *documents, *common, *outputs)
    wanted = differentiate(exact["q"], exact["k"], exact["v"], case.hidden, exact["up"])
    for gradient, value in zip(gradients, wanted, strict=True):
        assert_near(gradient.values, arrange(value, case.layout), dtype)
        assert gradient.is_intact_outside()


def assert_near(found: Values, expected: Values, dtype: str) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCES[dtype] * np.abs(expected).max())


def causal(q_rows: int, k_rows: int, shift: int = 0) -> npt.NDArray[np.bool_]:
    return np.asarray(np.arange(k_rows)[None, :] > np.arange(q_rows)[:, None] + shift)


LAYOUTS_OF_BATCHES = ("BNSD", "BSND", "BSH", "SBH")


@pytest.mark.parametrize("memory", ["dense", "gapped", "transposed"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS_OF_BATCHES)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_without_a_mask(device: Device, heads: tuple[int, int], layout: str, dtype: str, memory: str) -> None:
    hidden = np.zeros((5, 7), dtype=bool)
    check(device, Case(layout=layout, sizes=(2, *heads, 5, 7, 8), hidden=hidden, after=FAR), dtype, memory)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS_OF_BATCHES)
def test_mask_of_its_own_for_each_row(device: Device, layout: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    hidden = rng.integers(0, 2, size=(2, 1, 9, 9)).astype(bool) | causal(9, 9)
    hidden[:, :, np.arange(9), np.arange(9)] = False
    for mask_dtype in ("uint8", "bool"):
        mask = DeviceTensor(hidden, mask_dtype, "offset")
        check(device, Case(layout=layout, sizes=(2, 4, 2, 9, 9, 8), hidden=hidden, mask=mask), dtype)


@pytest.mark.parametrize("shape", [(70, 130), (1, 1, 70, 130), (2, 4, 70, 130)])
def test_masks_of_several_shapes(device: Device, shape: tuple[int, ...]) -> None:
    hidden = np.random.default_rng(2).integers(0, 2, size=shape).astype(bool)
    case = Case(layout="BNSD", sizes=(2, 4, 2, 70, 130, 8), hidden=hidden, mask=DeviceTensor(hidden, "bool"), sparse=1)
    check(device, case, "float32")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("layout", ["BSH", "BNSD"])
def test_rows_of_one_device_under_context_parallelism(device: Device, layout: str, rank: int) -> None:
    # As MindSpore calls it with two devices: half of the queries, all keys, and tokens before and after moved by the
    # number of rows on the devices before.
    rows = 16
    hidden = causal(rows, 2 * rows, rank * rows)
    case = Case(
        layout=layout,
        sizes=(2, 4, 2, rows, 2 * rows, 8),
        hidden=hidden,
        mask=DeviceTensor(hidden[None, None], "uint8"),
        before=FAR - rank * rows,
        after=rank * rows,
    )
    check(device, case, "float16")


def test_tokens_after_hide_keys_that_the_mask_shows(device: Device) -> None:
    hidden = causal(6, 6, 1) | (np.arange(6)[None, :] < np.arange(6)[:, None] - 2)
    mask = DeviceTensor(np.zeros((6, 6)), "uint8")
    check(device, Case(layout="BNSD", sizes=(1, 2, 2, 6, 6, 4), hidden=hidden, mask=mask, before=2, after=1), "float32")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("sparse", "hidden"),
    [
        (2, causal(70, 100)),
        (3, causal(70, 100, 30)),
        (4, causal(70, 100, 33) | (np.arange(100)[None, :] < np.arange(70)[:, None] + 30 - 5)),
    ],
)
def test_compressed_masks(device: Device, sparse: int, hidden: npt.NDArray[np.bool_], dtype: str) -> None:
    band = {"before": 5, "after": 3} if sparse == 4 else {}
    case = Case(layout="BNSD", sizes=(2, 4, 2, 70, 100, 8), hidden=hidden, mask=COMPRESSED, sparse=sparse, **band)
    check(device, case, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("q_ends", "k_ends"),
    [
        ([70], [70]),
        ([3, 40, 41, 70], [3, 40, 41, 70]),
        ([10, 70, 70, 70], [10, 70, 70, 70]),  # ends are repeated up to a fixed number
        ([0, 20, 70], [30, 60, 110]),  # the second device under context parallelism: keys of earlier rows
        ([70], [50]),  # the first device: keys after its rows are masked for all; the first 20 queries see none
    ],
)
def test_documents(device: Device, q_ends: list[int], k_ends: list[int], dtype: str) -> None:
    q_rows, k_rows = 70, max(70, k_ends[-1])
    hidden = np.ones((q_rows, k_rows), dtype=bool)
    for q_from, q_to, k_from, k_to in zip([0, *q_ends], q_ends, [0, *k_ends], k_ends, strict=False):
        rows, columns = q_to - q_from, k_to - k_from
        hidden[q_from:q_to, k_from:k_to] = causal(rows, columns, columns - rows)
    case = Case(
        layout="TND",
        sizes=(1, 4, 2, q_rows, k_rows, 8),
        hidden=hidden,
        mask=COMPRESSED,
        sparse=3,
        documents=(q_ends, k_ends),
    )
    check(device, case, dtype)


def test_blocks_of_keys_put_together_by_maximum_and_sum(device: Device) -> None:
    # What ring attention relies on: block results merge by their statistics, and the gradient of a block uses the
    # merged statistics and output.
    rng = np.random.default_rng(5)
    q, k, v, up = (rng.normal(size=(1, 2, 8, 4)) for _ in range(4))
    parts, statistics = [], []
    common = (SCALE, 1.0, FAR, FAR, 2, "BNSD", 0, 0)
    for block in (slice(0, 3), slice(3, 8)):
        out, top, total = (make_zeros((1, 2, 8, width), "float32") for width in (4, 8, 8))
        inputs = [DeviceTensor(array, "float32") for array in (q, k[:, :, block], v[:, :, block])]
        device.run("FlashAttentionScore", *inputs, None, None, None, None, (), *common, top, total, None, out)
        parts.append(out.values)
        statistics.append((top.values[..., :1], total.values[..., :1]))
    top = np.maximum(statistics[0][0], statistics[1][0])
    scaled = [total * np.exp(own - top) for own, total in statistics]
    merged = sum(part * weight for part, weight in zip(parts, scaled, strict=True)) / sum(scaled)
    hidden = np.zeros((8, 8), dtype=bool)
    np.testing.assert_allclose(merged, attend(q, k, v, hidden)[0], atol=1e-6)
    d_q, d_k, _ = differentiate(q, k, v, hidden, up)
    wide = [DeviceTensor(np.repeat(array, 8, axis=-1), "float32") for array in (top, sum(scaled))]
    sum_q, found_k = np.zeros_like(d_q), []
    for block in (slice(0, 3), slice(3, 8)):
        inputs = [DeviceTensor(array, "float32") for array in (q, k[:, :, block], v[:, :, block], up)]
        gradients = [make_zeros(tensor.shape, "float32") for tensor in inputs[:3]]
        device.run(
            "FlashAttentionScoreGrad",
            *inputs,
            None,
            None,
            None,
            None,
            *wide,
            None,
            DeviceTensor(merged, "float32"),
            (),
            *common,
            *gradients,
            None,
        )
        sum_q += gradients[0].values
        found_k.append(gradients[1].values)
    np.testing.assert_allclose(sum_q, d_q, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(found_k, axis=2), d_k, atol=1e-5)


def call(q: tuple[int, ...], k: tuple[int, ...], **changes: Any) -> list[Any]:
    named = {
        "mask": None,
        "keep": 1.0,
        "heads": 4,
        "layout": "BNSD",
        "sparse": 0,
        "bias": None,
        "key_dtype": "float32",
        **changes,
    }
    rows = make_zeros((2, 4, 8, 8), "float32")
    key = make_zeros(k, named["key_dtype"])
    return [
        make_zeros(q, "float32"),
        key,
        key,
        named["bias"],
        None,
        None,
        named["mask"],
        (),
        SCALE,
        named["keep"],
        FAR,
        FAR,
        named["heads"],
        named["layout"],
        0,
        named["sparse"],
        rows,
        rows,
        None,
        make_zeros(q, "float32"),
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (call((2, 4, 8, 8), (4, 2, 8, 8)), "different batches"),  # a fusion of MindSpore once made such a call
        (call((2, 4, 8, 8), (2, 3, 8, 8)), "heads"),
        (call((2, 4, 8, 8), (2, 2, 8, 4)), "widths"),
        (call((2, 8, 8), (2, 2, 8, 8)), "dimensions"),
        (call((2, 4, 8, 8), (2, 2, 8, 8), key_dtype="float16"), "different dtypes"),
        (call((2, 4, 8, 8), (2, 2, 8, 8), keep=0.9), "dropout"),
        (call((2, 4, 8, 8), (2, 2, 8, 8), bias=make_zeros((2, 4, 8, 8), "float32")), "bias"),
        (call((2, 4, 8, 8), (2, 2, 8, 8), sparse=2), "needs a mask"),
        (call((2, 4, 8, 8), (2, 2, 8, 8), sparse=2, mask=make_zeros((8, 8), "uint8")), "2048,2048"),
        (call((2, 4, 8, 8), (2, 2, 8, 8), sparse=2, mask=make_zeros((2048, 2048), "uint8")), "upper triangle"),
        (call((2, 4, 8, 8), (2, 2, 8, 8), sparse=6), "sparse mode 6"),
        (call((2, 4, 8, 8), (2, 2, 8, 8), layout="XYZ"), "XYZ"),
        (call((2, 4, 8, 8), (2, 2, 8, 8), heads=0), "number of heads is not positive"),
        (call((2, 4, 9, 8), (2, 2, 8, 8)), "output has shape"),
    ],
)
def test_errors(device: Device, arguments: list[Any], text: str) -> None:
    with pytest.raises(OperatorError, match=text):
        device.run("FlashAttentionScore", *arguments)
