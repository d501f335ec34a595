"""Networks with adapters against PEFT: loss, logits and gradients; what is trained, saved and loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")
pytest.importorskip("mindformers")

from mindformers import build_context
from mindformers.models.build_model import build_network
from mindformers.tools.register import MindFormerConfig
from mindspore import Tensor, nn

from ascend_cpt.backend.checkpointing.shard_files import read_shards
from ascend_cpt.backend.cpu import install_cpu_kernels
from ascend_cpt.backend.models import register_models
from ascend_cpt.backend.models.lora.network import add_adapters
from ascend_cpt.model.lora import list_adapted_layers
from ascend_cpt.model.sizes import read_config, select_model_fields
from ascend_cpt.weights.hf_folder import HfFolder
from ascend_cpt.weights.mapping import iterate_to_mindformers
from tests.lora import KINDS, Reference, read_reference

TOLERANCE = 1e-4
PAD_TOKEN = 127
SEED = 5


@pytest.fixture(scope="module", autouse=True)
def mindformers_context() -> None:
    install_cpu_kernels()
    register_models()
    context = {"mode": 0, "device_target": "CPU", "device_id": 0}
    build_context(MindFormerConfig(use_legacy=False, use_parallel=False, run_mode="train", context=context))


def build(reference: Reference) -> tuple[Any, Tensor, Tensor]:
    """Return the reference model with initial adapters, and its tokens and labels."""
    values = np.load(reference.model / "expected.npz")
    types = dict.fromkeys(("params_dtype", "compute_dtype", "layernorm_compute_dtype", "rotary_dtype"), "float32")
    settings = {"seq_length": values["tokens"].shape[1], "pad_token_id": PAD_TOKEN, "hidden_dropout": 0.0, **types}
    fields = select_model_fields(read_config(reference.model))
    network = build_network(MindFormerConfig(model_config={**fields, **settings}))
    folder = HfFolder(reference.model)
    parameters = network.parameters_dict()
    for name, tensor in iterate_to_mindformers(folder.sizes, lambda key: folder.read(key).astype(np.float32)):
        parameters[name].set_data(Tensor(tensor))
    add_adapters(network, reference.sizes, reference.settings, seed=SEED)
    return network, Tensor(values["tokens"]), Tensor(values["labels"])


class Loss(nn.Cell):
    """The language-model loss of a network."""

    def __init__(self, network: Any) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, tokens: Tensor, labels: Tensor) -> Any:
        return self.network(tokens, None, None, None, labels)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_loss_logits_and_gradients_are_those_of_peft(kind: str) -> None:
    reference = read_reference(kind)
    network, tokens, labels = build(reference)
    trained = network.trainable_params()
    assert {parameter.name for parameter in trained} == reference.join().keys()
    for name, tensor in reference.join().items():
        network.parameters_dict()[name].set_data(Tensor(tensor))
    network.set_train(True)
    loss, gradients = ms.value_and_grad(Loss(network), None, trained)(tokens, labels)
    assert abs(float(loss.asnumpy().item()) - float(reference.expected["loss"])) < TOLERANCE
    expected = reference.join("gradient ")
    for parameter, gradient in zip(trained, gradients, strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), expected[parameter.name], atol=1e-5, err_msg=parameter.name)
    network.set_train(False)
    logits = network(tokens).asnumpy().reshape(reference.expected["logits"].shape)
    assert np.abs(logits - reference.expected["logits"]).max() < TOLERANCE


def test_the_first_loss_is_that_of_the_base_and_only_adapters_are_saved() -> None:
    reference = read_reference("all")
    network, tokens, labels = build(reference)
    network.set_train(True)
    base_loss = float(np.load(reference.model / "expected.npz")["loss"])
    assert abs(float(Loss(network)(tokens, labels).asnumpy().item()) - base_loss) < TOLERANCE
    layers = list_adapted_layers(reference.sizes, reference.settings)
    names = [name for layer in layers for name in layer.shapes]
    optimizer = ms.nn.AdamWeightDecay(network.trainable_params())
    model, states = read_shards(network, optimizer, names)
    assert sorted(model) == sorted(names)
    for layer in layers:
        assert np.array_equal(model[f"{layer.name}.lora_a"], layer.make_a(SEED))
        assert not model[f"{layer.name}.lora_b"].any()
    assert {name.partition(".")[2] for name in states if "." in name} == set(names)
    assert len(read_shards(network, optimizer)[0]) > len(names)
