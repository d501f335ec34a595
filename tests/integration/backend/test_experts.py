"""The experts and the router of a mixture of experts on a CPU, compared with NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")
pytest.importorskip("mindformers")

from mindformers import build_context
from mindformers.models.build_model import build_network
from mindformers.tools.register import MindFormerConfig
from mindspore import Tensor, ops
from safetensors.numpy import load_file

from ascend_cpt.backend.cpu import install_cpu_kernels
from ascend_cpt.backend.models import register_models
from ascend_cpt.backend.models.experts.sums import ExpertSums, keep_router_state
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.monitor.experts.load import make_record
from ascend_cpt.weights.mapping import to_mindformers

Array = np.ndarray
REFERENCE = Path(__file__).resolve().parents[2] / "reference/qwen3_moe"
NUM_EXPERTS, NUM_CHOSEN, HIDDEN, INNER, NUM_TOKENS = 4, 2, 6, 5, 9


@pytest.fixture(scope="module", autouse=True)
def mindformers_context() -> None:
    install_cpu_kernels()
    register_models()
    context = {"mode": 0, "device_target": "CPU", "device_id": 0}
    build_context(MindFormerConfig(use_legacy=False, use_parallel=False, run_mode="train", context=context))


def make_experts() -> Any:
    from mindformers.parallel_core.training_graph.base_models.gpt import moe_module_specs

    config = MindFormerConfig(
        model_config={
            **json.loads((REFERENCE / "config.json").read_text(encoding="utf-8")),
            "num_experts": NUM_EXPERTS,
            "hidden_size": HIDDEN,
            "moe_intermediate_size": INNER,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "params_dtype": "float32",
            "compute_dtype": "float32",
        }
    )
    return moe_module_specs.FFNGroupedGEMM(build_network(config).get_gpt_transformer_config())


def mix(tokens: Array, probs: Array, chosen: Array, first: Array, second: Array) -> Array:
    """Every token's experts, by the definition."""
    first, second = first.reshape(NUM_EXPERTS, HIDDEN, 2 * INNER), second.reshape(NUM_EXPERTS, INNER, HIDDEN)
    output = np.zeros_like(tokens)
    for token in range(NUM_TOKENS):
        for place, expert in enumerate(chosen[0, token]):
            gate, up = np.split(tokens[0, token] @ first[expert], 2)
            output[0, token] += probs[0, token, place] * (gate / (1 + np.exp(-gate)) * up @ second[expert])
    return output


def test_experts_and_their_gradients() -> None:
    rng = np.random.default_rng(0)
    cell = make_experts()
    shapes = ((1, NUM_TOKENS, HIDDEN), (1, NUM_TOKENS, NUM_CHOSEN), cell.weight1.shape, cell.weight2.shape)
    tokens, probs, first, second = inputs = [rng.normal(size=shape) for shape in shapes]
    chosen = np.array([[rng.choice(NUM_EXPERTS, NUM_CHOSEN, replace=False) for _ in range(NUM_TOKENS)]])
    cell.weight1.set_data(Tensor(first, ms.float32))
    cell.weight2.set_data(Tensor(second, ms.float32))
    arguments = Tensor(tokens, ms.float32), Tensor(probs, ms.float32), Tensor(chosen, ms.int32)
    np.testing.assert_allclose(cell(*arguments).asnumpy(), mix(tokens, probs, chosen, first, second), atol=1e-4)

    sens = rng.normal(size=tokens.shape)
    gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
    (by_tokens, by_probs, _), by_weights = gradient(cell, [cell.weight1, cell.weight2])(
        *arguments, Tensor(sens, ms.float32)
    )
    found = [value.asnumpy() for value in (by_tokens, by_probs, *by_weights)]
    step = 1e-5
    for index, value in enumerate(found):
        # The derivative along a random direction.
        direction = rng.normal(size=value.shape)
        ends = []
        for sign in (1, -1):
            moved = [*inputs]
            moved[index] = inputs[index] + sign * step * direction
            ends.append((mix(moved[0], moved[1], chosen, moved[2], moved[3]) * sens).sum())
        assert (value * direction).sum() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3)


def build_reference(**settings: Any) -> SimpleNamespace:
    config = json.loads((REFERENCE / "config.json").read_text(encoding="utf-8"))
    expected = dict(np.load(REFERENCE / "expected.npz"))
    types = dict.fromkeys(("params_dtype", "compute_dtype", "layernorm_compute_dtype", "rotary_dtype"), "float32")
    fields = {key: value for key, value in config.items() if key not in ("dtype", "transformers_version")}
    network = build_network(
        MindFormerConfig(model_config={**fields, **types, "seq_length": 32, "pad_token_id": 127, **settings})
    )
    weights = {key: value.astype(np.float32) for key, value in load_file(REFERENCE / "model.safetensors").items()}
    parameters = network.parameters_dict()
    for name, weight in to_mindformers(weights, read_sizes(config)).items():
        parameters[name].set_data(Tensor(weight))
    return SimpleNamespace(network=network, expected=expected, sums=ExpertSums(network, num_layers=2, num_ranks=1))


def measure(logits: Array) -> tuple[Array, float, float]:
    """Return the loads, the balance loss and the z-loss for the router logits (tokens, experts) of transformers."""
    num_experts = logits.shape[-1]
    sums = np.exp(logits).sum(axis=-1, keepdims=True)
    chosen = np.argsort(-logits, axis=-1)[:, :2]
    load = np.bincount(chosen.ravel(), minlength=num_experts) / chosen.size
    balance = num_experts * (load * (np.exp(logits) / sums).mean(axis=0)).sum()
    return load, float(balance), float((np.log(sums) ** 2).mean())


def test_sums_and_losses_of_the_routers_follow_from_their_logits() -> None:
    reference = build_reference(moe_aux_loss_coeff=0.5, moe_z_loss_coeff=0.25)
    network, expected = reference.network, reference.expected
    network.set_train(True)
    arguments = Tensor(expected["tokens"]), None, None, None, Tensor(expected["labels"])
    loss, _, extra_loss, _ = network(*arguments)
    assert float(loss.asnumpy().item()) == pytest.approx(float(expected["loss"]), abs=1e-4)
    layers = [measure(logits.astype(np.float64)) for logits in expected["router_logits"]]
    wanted = sum(0.5 * balance + 0.25 * z_loss for _, balance, z_loss in layers)
    assert float(extra_loss.asnumpy().item()) == pytest.approx(wanted, rel=1e-4)

    with keep_router_state(network):
        network(*arguments)
    record = make_record(reference.sums.take(), step=1, num_steps=1)
    assert record.balance_loss == pytest.approx(np.mean([balance for _, balance, _ in layers]), rel=1e-4)
    assert record.z_loss == pytest.approx(np.mean([z_loss for _, _, z_loss in layers]), rel=1e-4)
    assert record.layer_max_load == pytest.approx([8 * load.max() for load, _, _ in layers], rel=1e-4)
    assert not reference.sums.take().any()


def test_the_load_is_that_of_all_micro_batches_of_the_step() -> None:
    reference = build_reference(moe_aux_loss_coeff=1.0)
    network, expected = reference.network, reference.expected
    network.set_train(True)
    batches = [
        (Tensor(expected["tokens"][row : row + 1]), None, None, None, Tensor(expected["labels"][row : row + 1]))
        for row in range(2)
    ]
    losses = [float(network(*batch)[2].asnumpy().item()) for batch in batches]
    by_row = expected["router_logits"].astype(np.float64).reshape(2, 2, 32, 8)
    whole = [measure(logits.reshape(64, 8))[0] for logits in by_row]
    probability = [np.exp(rows[1]) / np.exp(rows[1]).sum(axis=-1, keepdims=True) for rows in by_row]
    wanted = sum(8 * (load * row.mean(axis=0)).sum() for load, row in zip(whole, probability, strict=True))
    assert losses[0] == pytest.approx(sum(measure(rows[0])[1] for rows in by_row), rel=1e-4)
    assert losses[1] == pytest.approx(wanted, rel=1e-4)
