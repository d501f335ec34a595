"""Our Llama and MindFormers' Qwen3, with weights converted by our tables, against transformers with torch.

The reference values are in tests/reference, with the versions that produced them. If torch and transformers are
installed, other weights and tokens are compared live as well.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")
pytest.importorskip("mindformers")

from mindformers import build_context
from mindformers.models.build_model import build_network
from mindformers.tools.register import MindFormerConfig
from mindspore import Tensor
from safetensors.numpy import load_file

from ascend_cpt.backend.cpu import install_cpu_kernels
from ascend_cpt.backend.models import LlamaForCausalLM, ScaledQwen3ForCausalLM, register_models
from ascend_cpt.model.families import is_router_state
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.weights.mapping import to_hf, to_mindformers

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
MODELS = ["qwen3", "qwen3_tied", "llama2", "llama3", "llama31", "llama32_tied", "mistral", "qwen25_tied"]
MODELS += ["qwen3_moe", "qwen3_moe_tied"]
MODELS += ["qwen3_yarn", "llama_yarn", "qwen25_yarn", "mistral_yarn", "qwen3_moe_yarn"]
PAD_TOKEN, SEQ_LENGTH = 127, 32
ATTENTION = "decoder.layers.0.self_attention"
LOSS_TOLERANCE = 1e-4
LOGITS_TOLERANCE = 1e-4
LOGITS_TOLERANCE_FLOAT16_CAST = 5e-3

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def mindformers_context() -> None:
    install_cpu_kernels()
    register_models()
    context = {"mode": 0, "device_target": "CPU", "device_id": 0}
    build_context(MindFormerConfig(use_legacy=False, use_parallel=False, run_mode="train", context=context))


def read_model(name: str) -> tuple[dict[str, Any], Arrays, Arrays]:
    """Return the configuration, the float32 weights and the expected values of a reference model."""
    folder = REFERENCE / name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = {key: value.astype(np.float32) for key, value in load_file(folder / "model.safetensors").items()}
    return config, weights, dict(np.load(folder / "expected.npz"))


@cache
def build(name: str, keep_float16_cast: bool = False) -> Any:
    """Build a network as MindFormers does from a YAML whose model_config holds the fields of config.json."""
    return build_from(read_model(name)[0], keep_float16_cast)


def build_from(config: dict[str, Any], keep_float16_cast: bool = False) -> Any:
    install_cpu_kernels(keep_float16_cast=keep_float16_cast)
    fields = {key: value for key, value in config.items() if key not in ("dtype", "transformers_version")}
    types = dict.fromkeys(("params_dtype", "compute_dtype", "layernorm_compute_dtype", "rotary_dtype"), "float32")
    if "num_experts" in config:
        types["moe_aux_loss_coeff"] = 0.0  # the expected loss is the language model's
    settings = {"seq_length": SEQ_LENGTH, "pad_token_id": PAD_TOKEN, "hidden_dropout": 0.0, **types}
    return build_network(MindFormerConfig(model_config={**fields, **settings}))


def load(network: Any, weights: Arrays) -> None:
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    assert {name: parameter.shape for name, parameter in parameters.items() if not is_router_state(name)} == {
        name: weight.shape for name, weight in weights.items()
    }
    for name, weight in weights.items():
        parameters[name].set_data(Tensor(weight))


def compute(network: Any, expected: Arrays) -> tuple[float, np.ndarray]:
    tokens, labels = Tensor(expected["tokens"]), Tensor(expected["labels"])
    network.set_train(False)
    logits = network(tokens).asnumpy().reshape(expected["logits"].shape)
    network.set_train(True)
    losses = network(tokens, None, None, None, labels)
    return float(sum(loss.asnumpy().item() for loss in losses)), logits


def compare(network: Any, converted: Arrays, expected: Arrays) -> tuple[float, float]:
    """Return the differences of loss and logits from the expected ones."""
    load(network, converted)
    loss, logits = compute(network, expected)
    return abs(loss - float(expected["loss"])), float(np.abs(logits - expected["logits"]).max())


@pytest.mark.parametrize(
    ("name", "keep_float16_cast", "logits_tolerance"),
    [(name, False, LOGITS_TOLERANCE) for name in MODELS]
    + [(name, True, LOGITS_TOLERANCE_FLOAT16_CAST) for name in ("qwen3", "llama2", "llama31")],
)
def test_loss_and_logits_equal_those_of_transformers(
    name: str, keep_float16_cast: bool, logits_tolerance: float
) -> None:
    config, weights, expected = read_model(name)
    converted = to_mindformers(weights, read_sizes(config))
    loss_error, logits_error = compare(build(name, keep_float16_cast), converted, expected)
    print(f"{name}: loss differs by {loss_error:.1e}, logits by at most {logits_error:.1e}")
    assert loss_error < LOSS_TOLERANCE
    assert logits_error < logits_tolerance


def swap(first: str, second: str) -> Callable[[Arrays], None]:
    def swap_weights(weights: Arrays) -> None:
        weights[first], weights[second] = weights[second], weights[first]

    return swap_weights


def keep_halves(weights: Arrays) -> None:
    """Gate above up, as Hugging Face would concatenate them, instead of row by row."""
    name = "decoder.layers.1.mlp.linear_fc1.weight"
    weights[name] = np.concatenate([weights[name][0::2], weights[name][1::2]])


@pytest.mark.parametrize(
    "spoil",
    [
        keep_halves,
        swap("decoder.layers.0.input_layernorm.weight", "decoder.layers.0.pre_mlp_layernorm.weight"),
        swap(
            "decoder.layers.0.self_attention.q_layernorm.weight", "decoder.layers.0.self_attention.k_layernorm.weight"
        ),
        swap("embedding.word_embeddings.weight", "output_layer.weight"),
    ],
)
def test_comparison_detects_misplaced_weights(spoil: Callable[[Arrays], None]) -> None:
    config, weights, expected = read_model("qwen3")
    converted = to_mindformers(weights, read_sizes(config))
    spoil(converted)
    loss_error, logits_error = compare(build("qwen3"), converted, expected)
    assert loss_error > 5 * LOSS_TOLERANCE
    assert logits_error > 100 * LOGITS_TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_weights_round_trip_bit_for_bit(name: str) -> None:
    config, weights, _ = read_model(name)
    sizes = read_sizes(config)
    network = build(name)
    load(network, to_mindformers(weights, sizes))
    parameters = [parameter for parameter in network.get_parameters() if not is_router_state(parameter.name)]
    back = to_hf({parameter.name: parameter.asnumpy() for parameter in parameters}, sizes)
    assert back.keys() == weights.keys()
    for key, weight in weights.items():
        np.testing.assert_array_equal(back[key], weight, strict=True)


@pytest.mark.parametrize("missing", ["rope_scaling", "attention_factor"])
def test_comparison_detects_missing_yarn(missing: str) -> None:
    config, weights, expected = read_model("qwen3_yarn")
    other = {**config, "rope_scaling": None}
    if missing == "attention_factor":
        other["rope_scaling"] = {**config["rope_scaling"], "attention_factor": 1.0}
    loss_error, logits_error = compare(build_from(other), to_mindformers(weights, read_sizes(config)), expected)
    assert loss_error > LOSS_TOLERANCE and logits_error > 100 * LOGITS_TOLERANCE


def test_llama_is_ours_and_qwen3_is_mindformers() -> None:
    assert type(build("llama3")) is LlamaForCausalLM
    assert type(build("qwen3")).__module__.startswith("mindformers.models.qwen3")
    assert type(build("qwen3_yarn")) is ScaledQwen3ForCausalLM


@pytest.mark.parametrize("name", MODELS)
def test_live_comparison_with_torch(name: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed: the checked-in values are compared instead")
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("make_reference", REFERENCE / "make_reference.py")
    assert spec is not None and spec.loader is not None
    make_reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_reference)
    model_type, fields = make_reference.MODELS[name]
    model = make_reference.make_model(model_type, fields, seed=100)
    config, checked_in, _ = read_model(name)
    weights = {key: value.numpy() for key, value in model.state_dict().items() if key in checked_in}
    converted = to_mindformers(weights, read_sizes(config))
    loss_error, logits_error = compare(build(name), converted, make_reference.compute_expected(model, seed=100))
    print(f"{name}, live: loss differs by {loss_error:.1e}, logits by at most {logits_error:.1e}")
    assert loss_error < LOSS_TOLERANCE
    assert logits_error < LOGITS_TOLERANCE
