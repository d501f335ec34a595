"""The CPU's loss, AdamW update and MLP against NumPy and MindFormers."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")
pytest.importorskip("mindformers")

from mindspore import Parameter, Tensor, nn, ops

from ascend_cpt.backend.cpu import install_cpu_kernels
from ascend_cpt.backend.cpu.projections import SplitWeightMLP

Array = np.ndarray


@pytest.fixture(scope="module", autouse=True)
def cpu_kernels() -> None:
    install_cpu_kernels()
    ms.set_context(mode=ms.GRAPH_MODE)


class InputGradients(nn.Cell):
    """Output of a cell and the gradient of its first input."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.cell, self.gradient = cell, ops.GradOperation(sens_param=True)

    def construct(self, first: Tensor, second: Tensor, sens: Tensor) -> Any:
        return self.cell(first, second), self.gradient(self.cell)(first, second, sens)


class Losses(nn.Cell):
    """The two cells of the loss, as MindFormers calls them."""

    def __init__(self) -> None:
        super().__init__()
        from mindformers.parallel_core.training_graph import loss_func

        self.log_softmax, self.select = loss_func._LogSoftmax(), loss_func._NLLLoss()

    def construct(self, logits: Tensor, label: Tensor) -> Tensor:
        values, target = self.log_softmax(logits, label)
        return self.select(values, target)


def test_token_losses_and_gradients_match_numpy() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (6, 11)).astype(np.float32)
    label = np.array([0, 10, 3, -100, 3, 7], np.int32)
    sens = np.array([1, 0.5, 2, 0, 1, 0], np.float32)
    losses, gradient = InputGradients(Losses())(Tensor(logits), Tensor(label), Tensor(sens))
    shifted = logits - logits.max(1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    one_hot = np.eye(11)[np.maximum(label, 0)] * (label >= 0)[:, None]
    np.testing.assert_allclose(losses.asnumpy(), -(log_softmax * one_hot).sum(1), rtol=1e-5, atol=1e-5)
    expected = (np.exp(log_softmax) - one_hot) * sens[:, None]
    np.testing.assert_allclose(gradient.asnumpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_matches_numpy(weight_decay: float) -> None:
    from mindformers.core.optim import adamw

    rng = np.random.default_rng(1)
    start = rng.normal(size=(7, 5)).astype(np.float32)
    weight = Parameter(Tensor(start), name="weight")
    rate, beta1, beta2, epsilon = 0.03, 0.9, 0.95, 1e-3  # a large epsilon, so that its place in the formula matters
    optimizer = adamw.AdamW([weight], rate, betas=(beta1, beta2), eps=epsilon, weight_decay=weight_decay)
    expected, first, second = start.astype(np.float64), np.zeros((7, 5)), np.zeros((7, 5))
    for step in range(1, 4):
        gradient = rng.normal(size=(7, 5)).astype(np.float32)
        optimizer((Tensor(gradient),))
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient.astype(np.float64) ** 2
        expected = expected * (1 - rate * weight_decay)
        denominator = np.sqrt(second / (1 - beta2**step)) + epsilon
        expected = expected - rate / (1 - beta1**step) * first / denominator
    np.testing.assert_allclose(weight.asnumpy(), expected, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(optimizer.exp_avg_sq[0].asnumpy(), second, rtol=1e-5)


def test_float16_weights_are_updated_as_in_mindformers() -> None:
    from mindformers.core.optim import adamw

    weight = Parameter(Tensor(np.ones(4), ms.float16), name="weight16")
    adamw.AdamW([weight], 0.5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)((Tensor(np.ones(4), ms.float16),))
    np.testing.assert_allclose(weight.astype(ms.float32).asnumpy(), np.full(4, 0.5), rtol=1e-2)


def make_mlp(mlp_class: Any) -> Any:
    """Return MindFormers' gated MLP with fixed weights."""
    layers = importlib.import_module("mindformers.parallel_core.training_graph.tensor_parallel.layers")
    mlp_module = importlib.import_module("mindformers.parallel_core.training_graph.transformer.mlp")
    transformer_config = importlib.import_module("mindformers.parallel_core.transformer_config")
    config = transformer_config.TransformerConfig(
        num_layers=1, num_attention_heads=1, hidden_size=8, ffn_hidden_size=12, gated_linear_unit=True,
        hidden_act="silu", add_bias_linear=False, params_dtype="float32", compute_dtype="float32",
    )  # fmt: skip
    importlib.import_module("mindformers.parallel_core.training_graph.device_matrix").layout.init_layout(config)
    submodules = mlp_module.MLPSubmodules(linear_fc1=layers.ColumnParallelLinear, linear_fc2=layers.RowParallelLinear)
    mlp = mlp_class(config, submodules)
    for parameter in mlp.get_parameters():
        rng = np.random.default_rng(len(parameter.name))
        parameter.set_data(Tensor(rng.normal(size=parameter.shape), ms.float32))
    return mlp


class OutputOf(nn.Cell):
    """The output of an MLP."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.mlp = mlp

    def construct(self, inputs: Tensor) -> Tensor:
        return self.mlp(inputs)[0]


def run_mlp(mlp: Any, inputs: Tensor, sens: Tensor) -> list[Array]:
    """Return the output and the gradients of the inputs and the weights."""
    cell = OutputOf(mlp)
    weights = ms.ParameterTuple(list(mlp.get_parameters()))
    by_input, by_weights = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)(cell, weights)(
        inputs, sens
    )
    return [tensor.asnumpy() for tensor in (cell(inputs), *by_input, *by_weights)]


def test_mlp_with_split_weight_is_mindformers_mlp() -> None:
    gpt_layer_specs = importlib.import_module(
        "mindformers.parallel_core.training_graph.base_models.gpt.gpt_layer_specs"
    )
    assert gpt_layer_specs.MLPInterleaved is SplitWeightMLP
    rng = np.random.default_rng(0)
    inputs, sens = (Tensor(rng.normal(size=(5, 2, 8)), ms.float32) for _ in range(2))
    ours, upstream = (run_mlp(make_mlp(one), inputs, sens) for one in (SplitWeightMLP, SplitWeightMLP.__mro__[1]))
    for array, expected in zip(ours, upstream, strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-4)


def test_a_replaced_projection_is_used() -> None:
    """For example a layer with an adapter, or one whose product is wrapped."""
    mlp = make_mlp(SplitWeightMLP)
    inputs = Tensor(np.ones((5, 2, 8)), ms.float32)
    before = OutputOf(mlp)(inputs).asnumpy()
    upstream = mlp.linear_fc1.morphed_forward

    class Doubled(nn.Cell):
        def construct(self, rows: Tensor, weight: Tensor) -> Tensor:
            return upstream(rows, weight) * 2

    mlp.linear_fc1.morphed_forward = Doubled()
    assert np.abs(OutputOf(mlp)(inputs).asnumpy() - before).max() > 0.1
