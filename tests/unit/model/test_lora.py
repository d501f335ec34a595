"""The settings of adapters: parameters, initial values, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ascend_cpt.model.lora import (
    LoraSettings,
    count_adapter_parameters,
    find_lora_problem,
    list_adapted_layers,
    list_adapter_shapes,
    read_settings,
)
from ascend_cpt.model.sizes import ModelSizes, read_config, read_sizes
from tests.lora import REFERENCE, read_reference

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SETTINGS = LoraSettings(rank=4, alpha=8, targets=ALL)


@pytest.fixture(scope="module")
def sizes() -> ModelSizes:
    return read_sizes(read_config(REFERENCE / "qwen3"))


def test_shapes_of_a_layer(sizes: ModelSizes) -> None:
    # 4 query heads and 2 key-value heads of 16, hidden size 48, MLP 64.
    shapes = list_adapter_shapes(sizes, SETTINGS)
    first = {name.removeprefix("decoder.layers.0."): s for name, s in shapes.items() if ".layers.0." in name}
    assert first == {
        "self_attention.linear_qkv.lora_a": (12, 48),
        "self_attention.linear_qkv.lora_b": (128, 4),
        "self_attention.linear_proj.lora_a": (4, 64),
        "self_attention.linear_proj.lora_b": (48, 4),
        "mlp.linear_fc1.lora_a": (8, 48),
        "mlp.linear_fc1.lora_b": (128, 4),
        "mlp.linear_fc2.lora_a": (4, 64),
        "mlp.linear_fc2.lora_b": (48, 4),
    }
    assert len(shapes) == 16


@pytest.mark.parametrize("kind", ["all", "some_stabilized", "with_bias"])
def test_number_of_trained_parameters_is_that_of_peft(kind: str) -> None:
    reference = read_reference(kind)
    expected = sum(tensor.size for tensor in reference.tensors.values())
    assert count_adapter_parameters(reference.sizes, reference.settings) == expected


def test_scale() -> None:
    assert SETTINGS.scale == 2
    assert replace(SETTINGS, rank_stabilized=True).scale == 4


def test_initial_a_depends_only_on_the_seed_and_the_module(sizes: ModelSizes) -> None:
    whole = list_adapted_layers(sizes, SETTINGS)[0].make_a(1)
    only_values = list_adapted_layers(sizes, replace(SETTINGS, targets=("v_proj",)))[0].make_a(1)
    assert np.array_equal(whole[8:], only_values)
    assert not np.array_equal(whole, list_adapted_layers(sizes, SETTINGS)[0].make_a(2))
    assert not np.array_equal(whole, list_adapted_layers(sizes, SETTINGS)[4].make_a(1))
    bound = 1 / math.sqrt(48)
    assert 0.9 * bound < np.abs(whole).max() <= bound and whole.dtype == np.float32


def test_mask_selects_the_module_of_a_row(sizes: ModelSizes) -> None:
    layers = list_adapted_layers(sizes, replace(SETTINGS, targets=("q_proj", "v_proj", "up_proj")))
    qkv, fc1 = layers[0].make_mask(), layers[1].make_mask()
    # A group has the rows of 2 query heads, a key head and a value head.
    group = [[1] * 4 + [0] * 4] * 32 + [[0] * 8] * 16 + [[0] * 4 + [1] * 4] * 16
    assert qkv.tolist() == group * 2
    assert fc1.tolist() == [[0] * 4, [1] * 4] * 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("q_poj",)}, "targets: the model has no module 'q_poj'; did you mean 'q_proj'?"),
        ({"targets": ("linear_qkv",)}, "choose from q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
        ({"targets": ("embed_tokens",)}, "'embed_tokens': adapters of the embedding and the output layer are not"),
        ({"targets": ("lm_head",)}, "'lm_head': adapters of the embedding and the output layer are not supported"),
        ({"targets": ()}, "targets is empty; name modules: q_proj"),
        ({"targets": ("q_proj", "q_proj")}, "targets: 'q_proj' is listed twice; remove one"),
        ({"rank": 33}, "rank 33 is above 32, the smallest size of a linear module; lower it"),
        ({"alpha": 0.0}, "alpha must be above 0, got 0"),
        ({"alpha": float("inf")}, "alpha must be above 0"),
    ],
)
def test_refused(changes: dict[str, Any], message: str, sizes: ModelSizes) -> None:
    assert message in find_lora_problem(sizes, replace(SETTINGS, **changes))


def test_a_mixture_of_experts_is_refused() -> None:
    sizes = read_sizes(read_config(REFERENCE / "qwen3_moe"))
    assert "mixture of experts" in find_lora_problem(sizes, SETTINGS)
    assert find_lora_problem(read_sizes(read_config(REFERENCE / "qwen3")), SETTINGS) == ""


@pytest.mark.parametrize(
    "record",
    [{}, {"rank": True, "alpha": 1, "targets": []}, {"rank": 0, "alpha": 1.0, "targets": []},
     {"rank": 2, "alpha": "1", "targets": ["q_proj"]}, {"rank": 2, "alpha": 1.0, "targets": [1]}],
)  # fmt: skip
def test_damaged_records_are_refused(record: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        read_settings(record)


def test_record_of_a_run() -> None:
    record = {"rank": 4, "alpha": 8, "targets": list(ALL), "rank_stabilized": False}
    assert read_settings(record) == SETTINGS
