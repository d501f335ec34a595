"""Patterns of weight names freeze weights; the shapes are those of a small Qwen3."""

from __future__ import annotations

from ascend_cpt.model.frozen import find_freeze_problem, list_frozen
from ascend_cpt.model.parameters import list_mindformers_shapes
from ascend_cpt.model.sizes import read_sizes

SIZES = read_sizes(
    {
        "model_type": "qwen3",
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
)
NAMES = list(list_mindformers_shapes(SIZES))


def test_excluded_weights_are_trained() -> None:
    assert list_frozen(SIZES, None) == []
    layer = [name for name in NAMES if ".layers.0." in name]
    assert list_frozen(SIZES, {"freeze_include": ["*.layers.0.*"]}) == layer
    trained = [name for name in layer if "layernorm" in name]
    assert trained and list_frozen(SIZES, {"freeze_include": ["*.layers.0.*"], "freeze_exclude": ["*layernorm*"]}) == [
        name for name in layer if name not in trained
    ]


def test_problems() -> None:
    assert find_freeze_problem(SIZES, {"freeze_include": ["*word_embeddings*"]}) == ""
    assert find_freeze_problem(SIZES, {"freeze_include": ["*"], "freeze_exclude": ["*.layers.1.*"]}) == ""
    for section, message in (
        ({"pet_type": "lora", "target_modules": ".*"}, "pet_type, target_modules: LoRA and other adapters are not"),
        ({"freeze_include": "*"}, "freeze_include: must be a list of patterns of weight names"),
        ({"freeze_include": ["*"], "freeze_exclude": []}, "freeze_exclude: must be a list"),
        ({"freeze_include": ["*.layer.0.*"]}, "freeze_include: '*.layer.0.*' matches no weight of the model"),
        ({"freeze_include": ["*"]}, "all weights would be frozen"),
    ):
        assert find_freeze_problem(SIZES, section).startswith(message)
