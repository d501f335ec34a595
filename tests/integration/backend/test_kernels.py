"""The CPU kernels compared with NumPy in float64, forward and gradient, and their errors."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")
pytest.importorskip("mindformers")

from mindspore import Tensor, nn, ops

from ascend_cpt.backend.cpu import install_cpu_kernels, is_installed, kernels
from ascend_cpt.errors import ConfigError

Array = np.ndarray
BATCH, LENGTH, HEAD_DIM = 2, 7, 8


@pytest.fixture(scope="module", autouse=True)
def cpu_kernels() -> None:
    install_cpu_kernels()
    ms.set_context(mode=ms.GRAPH_MODE)


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def to_tensor(array: Array, dtype: Any = None) -> Tensor:
    return Tensor(array, dtype or ms.float32)


def run_with_gradients(cell: nn.Cell, inputs: tuple[Tensor, ...], sens: Array) -> tuple[Array, list[Array]]:
    """Return a cell's output and the gradients of sum(output * sens) for all inputs, both from graph mode."""
    gradients = ops.GradOperation(get_all=True, sens_param=True)(cell)(*inputs, to_tensor(sens))
    return cell(*inputs).asnumpy(), [gradient.asnumpy() for gradient in gradients]


def causal_mask() -> Array:
    return np.broadcast_to(np.triu(np.ones((LENGTH, LENGTH)), k=1), (BATCH, 1, LENGTH, LENGTH))


def document_mask() -> Array:
    """A causal mask within documents; boundaries differ by row."""
    documents = np.array([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 2]])
    other = documents[:, :, None] != documents[:, None, :]
    return np.maximum(causal_mask(), other[:, None, :, :])


def reference_attention(
    query: Array, key: Array, value: Array, mask: Array | None, sens: Array
) -> tuple[Array, list[Array]]:
    """Attention and its gradients by the definition, with repeated heads."""
    num_repeats = query.shape[1] // key.shape[1]
    scale = 1 / np.sqrt(HEAD_DIM)
    keys, values = (np.repeat(tensor, num_repeats, axis=1) for tensor in (key, value))
    scores = query @ keys.swapaxes(-1, -2) * scale
    if mask is not None:
        scores = np.where(mask.astype(bool), -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    by_weights = sens @ values.swapaxes(-1, -2)
    by_scores = weights * (by_weights - (by_weights * weights).sum(-1, keepdims=True)) * scale

    def sum_repeats(by_head: Array) -> Array:
        return by_head.reshape(BATCH, key.shape[1], num_repeats, -1, HEAD_DIM).sum(2)

    by_key = sum_repeats(by_scores.swapaxes(-1, -2) @ query)
    by_value = sum_repeats(weights.swapaxes(-1, -2) @ sens)
    return weights @ values, [by_scores @ keys, by_key, by_value]


class Attend(nn.Cell):
    """Returns only the attention output; the mask is a constant."""

    def __init__(self, num_heads: int, mask: Array | None) -> None:
        super().__init__()
        self.attention = kernels.FlashAttentionScore(num_heads, scale_value=1 / np.sqrt(HEAD_DIM), next_tokens=0)
        self.mask = None if mask is None else Tensor(mask.astype(np.uint8))

    def construct(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        _, _, _, output = self.attention(query, key, value, None, None, None, self.mask, None)
        return output


@pytest.mark.parametrize("mask", [causal_mask(), document_mask(), causal_mask()[0, 0], None])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_attention_and_gradients_match_numpy(num_heads: int, num_kv_heads: int, mask: Array | None) -> None:
    query = random(0, BATCH, num_heads, LENGTH, HEAD_DIM)
    key, value = (random(seed, BATCH, num_kv_heads, LENGTH, HEAD_DIM) for seed in (1, 2))
    sens = random(3, *query.shape)
    inputs = (to_tensor(query), to_tensor(key), to_tensor(value))
    output, gradients = run_with_gradients(Attend(num_heads, mask), inputs, sens)
    expected, expected_gradients = reference_attention(query, key, value, mask, sens)
    np.testing.assert_allclose(output, expected, atol=2e-6)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, atol=5e-6)


def test_attention_of_float16_inputs_is_computed_in_float32() -> None:
    tensors = [random(seed, BATCH, 2, LENGTH, HEAD_DIM).astype(np.float16) for seed in range(3)]
    output = Attend(2, causal_mask())(*(to_tensor(tensor, ms.float16) for tensor in tensors))
    assert output.dtype == ms.float16
    query, key, value = (tensor.astype(np.float64) for tensor in tensors)
    expected, _ = reference_attention(query, key, value, causal_mask(), query)
    np.testing.assert_allclose(output.asnumpy(), expected, atol=1e-3)


def test_fully_masked_row_is_finite() -> None:
    tensors = tuple(to_tensor(random(seed, BATCH, 2, LENGTH, HEAD_DIM)) for seed in range(3))
    mask = np.array(causal_mask())
    mask[0, 0, 4] = 1
    output, gradients = run_with_gradients(Attend(2, mask), tensors, np.ones((BATCH, 2, LENGTH, HEAD_DIM)))
    assert all(np.isfinite(array).all() for array in (output, *gradients))


@pytest.mark.parametrize(
    ("setting", "named"),
    [({"input_layout": "TND"}, "TND"), ({"keep_prob": 0.9}, "dropout"), ({"sparse_mode": 2}, "compression")],
)
def test_unsupported_attention_is_refused(setting: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        kernels.FlashAttentionScore(4, **setting)


def test_outer() -> None:
    left, right, sens = random(0, 5), random(1, 3), random(2, 5, 3)
    output, (by_left, by_right) = run_with_gradients(kernels.Outer(), (to_tensor(left), to_tensor(right)), sens)
    np.testing.assert_allclose(output, np.outer(left, right), rtol=1e-6)
    np.testing.assert_allclose(by_left, sens @ right, atol=1e-6)
    np.testing.assert_allclose(by_right, left @ sens, atol=1e-6)


class LookUp(nn.Cell):
    """The embedding kernel with fixed ids; the weight is the input."""

    def __init__(self, ids: Array) -> None:
        super().__init__()
        self.ids = Tensor(ids, ms.int32)

    def construct(self, weight: Tensor) -> Tensor:
        return kernels.look_up_embedding(self, self.ids, weight)


def test_embedding_sums_gradients_of_repeated_ids_deterministically() -> None:
    ids = np.random.default_rng(0).integers(0, 11, (4, 64))
    weight, sens = random(1, 11, 16), random(2, 4, 64, 16)
    look_up = LookUp(ids)
    output, (gradient,) = run_with_gradients(look_up, (to_tensor(weight),), sens)
    expected = np.zeros_like(weight)
    np.add.at(expected, ids, sens)
    np.testing.assert_array_equal(output, weight.astype(np.float32)[ids])
    np.testing.assert_allclose(gradient, expected, atol=2e-5)
    for _ in range(5):
        np.testing.assert_array_equal(run_with_gradients(look_up, (to_tensor(weight),), sens)[1][0], gradient)


def test_fused_rms_norm_is_mindformers_rms_norm() -> None:
    norm = importlib.import_module("mindformers.parallel_core.training_graph.transformer.norm")
    transformer_config = importlib.import_module("mindformers.parallel_core.transformer_config")
    config = transformer_config.TransformerConfig(
        num_layers=1, num_attention_heads=1, hidden_size=8, normalization="RMSNorm", params_dtype="float32"
    )
    config.layernorm_compute_dtype = ms.float32
    x, sens = random(0, 3, 2, 8), random(1, 3, 2, 8)
    cell = norm.get_norm_cls(fused_norm=True)(config, dim=8, eps=1e-5)
    assert isinstance(cell, norm.RMSNorm)
    output, (gradient,) = run_with_gradients(cell, (to_tensor(x),), sens)
    root = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    expected = sens / root - x * (sens * x).mean(-1, keepdims=True) / root**3
    np.testing.assert_allclose(output, x / root, atol=1e-6)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


class WeightedSum(nn.Cell):
    """A loss whose gradient is its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = ms.Parameter(Tensor(np.ones(4), ms.float32), name="weight")
        self.other = ms.Parameter(Tensor(np.ones(3), ms.float32), name="other")

    def construct(self, x: Tensor) -> Tensor:
        return ops.reduce_sum(self.weight * x) + ops.reduce_sum(self.other)


@pytest.mark.parametrize(
    ("bad", "overflows"), [(None, False), (np.inf, True), (-np.inf, True), (np.nan, True), (3e38, False)]
)
def test_step_with_non_finite_gradient_is_skipped_and_reported(
    bad: float | None, overflows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ms.set_context(mode=ms.PYNATIVE_MODE)  # tests of models in the same process use graphs
    wrapper = importlib.import_module("mindformers.wrapper.wrapper")
    monkeypatch.setattr(wrapper, "is_legacy_model", lambda: True)  # which takes a network of one loss
    network = WeightedSum()
    step = wrapper.MFTrainOneStepCell(network, nn.SGD(network.trainable_params(), learning_rate=0.1))
    x = np.ones(4)
    if bad is not None:
        x[2] = bad
    overflow = step(to_tensor(x))[1]
    assert bool(overflow) is overflows
    is_unchanged = np.array_equal(network.other.asnumpy(), np.ones(3))
    assert is_unchanged is overflows


def test_only_data_parallel_skips_model_parallel_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpt_model = importlib.import_module("mindformers.parallel_core.training_graph.base_models.gpt.gpt_model")
    parallel_state = importlib.import_module("mindformers.parallel_core.inference.parallel_state")
    sizes = {"tensor_model_parallel_size": 1, "data_parallel_size": 1}
    monkeypatch.setattr(ms, "get_auto_parallel_context", lambda _key: ms.ParallelMode.DATA_PARALLEL)
    gpt_model.initialize_model_parallel(**sizes)
    monkeypatch.setattr(ms, "get_auto_parallel_context", lambda _key: ms.ParallelMode.SEMI_AUTO_PARALLEL)
    assert gpt_model.initialize_model_parallel is not parallel_state.initialize_model_parallel
    with pytest.raises(RuntimeError):  # there is no communication group in this process
        gpt_model.initialize_model_parallel(**sizes)


def test_cores_are_bound_only_if_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    build_context = importlib.import_module("mindformers.core.context.build_context")
    bindings: list[Any] = []
    monkeypatch.setattr(ms.runtime, "set_cpu_affinity", lambda *arguments: bindings.append(arguments))
    build_context.set_ms_affinity(None, None)
    build_context.set_ms_affinity({}, None)
    assert bindings == []
    build_context.set_ms_affinity(None, {"0": ["0-1"]})
    assert bindings == [(True, {"0": ["0-1"]}, None)]


def test_installing_again_only_changes_the_cast() -> None:
    specs = importlib.import_module("mindformers.parallel_core.training_graph.base_models.gpt.gpt_layer_specs")
    attention = importlib.import_module("mindformers.parallel_core.training_graph.transformer.attention")
    build_context = importlib.import_module("mindformers.core.context.build_context")
    binder = build_context.set_ms_affinity
    assert is_installed()
    assert specs.SelfAttention is not attention.SelfAttention
    install_cpu_kernels(keep_float16_cast=True)
    assert specs.SelfAttention is attention.SelfAttention
    install_cpu_kernels()
    assert issubclass(specs.SelfAttention, attention.SelfAttention)
    assert specs.SelfAttention is not attention.SelfAttention
    assert build_context.set_ms_affinity is binder
