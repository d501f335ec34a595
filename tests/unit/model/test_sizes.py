"""Reading sizes from config.json, and refusing unsupported fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.errors import CheckpointError, ConfigError
from ascend_cpt.model.parameters import list_hf_shapes
from ascend_cpt.model.sizes import Experts, find_window_problem, read_attention_window, read_config, read_sizes
from ascend_cpt.model.unsupported import find_difference
from ascend_cpt.weights.hf_config import make_config

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def test_defaults_are_those_of_transformers() -> None:
    sizes = read_sizes(CONFIG)
    assert (sizes.num_kv_heads, sizes.head_dim, sizes.tie_word_embeddings) == (4, 2, False)
    assert (sizes.rms_norm_eps, sizes.rope.theta) == (1e-6, 10000.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act: gelu"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_type: linear"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "rope_type: longrope"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"hidden_size": 9}, "hidden_size 9"),
    ],
)
def test_unsupported_values_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_sizes({**CONFIG, **change})


MOE = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 3}


def test_experts_are_read_for_mixtures_of_experts_only() -> None:
    experts = read_sizes({**CONFIG, **MOE}).experts
    assert experts == Experts(num_experts=4, num_per_token=2, intermediate_size=3, normalizes=False)
    assert read_sizes({**CONFIG, **MOE, "model_type": "qwen3"}).experts is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ({"mlp_only_layers": [0]}, "mlp_only_layers"),
        ({"num_experts": None}, "num_experts"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok 5"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size"),
    ],
)
def test_unsupported_mixtures_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_sizes({**CONFIG, **MOE, **change})


def test_sliding_window_fields_without_effect_are_ignored() -> None:
    unused = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}
    assert read_sizes({**CONFIG, **unused}) == read_sizes(CONFIG)


def test_the_attention_window_of_mistral() -> None:
    """Its default is that of transformers. Rows must not be longer, and the field is always exported."""
    mistral = {**CONFIG, "model_type": "mistral"}
    assert read_attention_window(mistral) == 4096
    assert read_attention_window({**mistral, "sliding_window": None}) is None
    assert read_attention_window({**CONFIG, "sliding_window": 128}) is None
    assert find_window_problem(mistral, 4096) is None
    assert find_window_problem({**mistral, "sliding_window": None}, 10**6) is None
    problem = find_window_problem(mistral, 4097)
    assert problem is not None and problem.startswith("sliding_window: 4096 tokens, fewer than the rows of 4097")
    with pytest.raises(ConfigError, match="sliding_window: expected a positive whole number"):
        read_attention_window({**mistral, "sliding_window": "all"})
    exported = make_config({**mistral, "sliding_window": None})
    assert exported["sliding_window"] is None and exported["architectures"] == ["MistralForCausalLM"]
    assert make_config(mistral)["sliding_window"] == 4096
    assert "sliding_window" not in make_config(CONFIG)


def test_the_refusal_of_a_family_names_the_difference() -> None:
    for family in ("phi3", "gemma2", "deepseek_v3", "mixtral"):
        difference = find_difference(family)
        assert difference
        with pytest.raises(ConfigError) as caught:
            list_hf_shapes(read_sizes({**CONFIG, "model_type": family}))
        assert f"model_type: {family!r} is not supported ({difference}); only llama, " in str(caught.value)
    with pytest.raises(ConfigError, match="model_type: 'other' is not supported; only llama, "):
        make_config({**CONFIG, "model_type": "other"})


def test_a_folder_without_a_readable_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no config.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read_config(tmp_path)
