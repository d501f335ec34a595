"""Patterns of weight names freeze weights; the shapes are those of a small Qwen3."""

from __future__ import annotations

import pytest

from ascend_cpt.model.frozen import find_freeze_problem, find_trainable_problem, list_first_rows, list_frozen
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


def test_trainable_patterns() -> None:
    embedding, output = "embedding.word_embeddings.weight", "output_layer.weight"
    assert list_frozen(SIZES, None, ["*.layers.0.*"]) == [name for name in NAMES if ".layers.0." not in name]
    patterns = ["*word_embeddings.weight[100:]", f"{output}[0:]"]
    assert list_frozen(SIZES, None, patterns) == [name for name in NAMES if name not in (embedding, output)]
    assert list_first_rows(SIZES, patterns) == {embedding: 100}
    # A pattern without rows trains the whole weight.
    assert list_first_rows(SIZES, [*patterns, "*"]) == {}
    assert find_trainable_problem(SIZES, patterns) == ""


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*.layer.0.*", "'*.layer.0.*' matches no weight of the model; the closest one is "),
        ("model.embed_tokens.weight[5:]", "'model.embed_tokens.weight[5:]' matches no weight of the model"),
        ("*layernorm*[5:]", "'*layernorm*[5:]': [N:] works only for the embedding and the output layer, not for"),
        ("output_layer.weight[128:]", "'output_layer.weight[128:]': there are only 128 rows, numbered from 0"),
    ],
)
def test_trainable_problems(pattern: str, message: str) -> None:
    assert find_trainable_problem(SIZES, [pattern]).startswith(message)
