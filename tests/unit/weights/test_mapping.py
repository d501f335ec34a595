"""The mapping of weights: exact in both directions, complete, and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from ascend_cpt.errors import CheckpointError, ConfigError
from ascend_cpt.model.parameters import (
    count_active_parameters,
    count_parameters,
    list_hf_shapes,
    list_mindformers_shapes,
)
from ascend_cpt.model.sizes import ModelSizes, read_sizes
from ascend_cpt.weights.mapping import to_hf, to_mindformers

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
MODELS = ["qwen3", "qwen3_tied", "llama2", "llama3", "llama31", "llama32_tied", "mistral", "qwen25_tied"]
MODELS += ["qwen3_moe", "qwen3_moe_tied"]
MOE = {"model_type": "qwen3_moe", "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 4}


def make_sizes(**changes: Any) -> ModelSizes:
    config = {
        "model_type": "llama",
        "vocab_size": 11,
        "hidden_size": 6,
        "intermediate_size": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 2,
    }
    return read_sizes({**config, **changes})


def make_weights(sizes: ModelSizes, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in list_hf_shapes(sizes).items()}


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        np.testing.assert_array_equal(right[name], tensor, strict=True)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_of_transformers_models_is_bit_exact(name: str) -> None:
    sizes = read_sizes(json.loads((REFERENCE / name / "config.json").read_text(encoding="utf-8")))
    weights = load_file(REFERENCE / name / "model.safetensors")
    converted = to_mindformers(weights, sizes)
    assert {key: tensor.shape for key, tensor in converted.items()} == list_mindformers_shapes(sizes)
    assert_same(weights, to_hf(converted, sizes))


@settings(deadline=None, max_examples=50)
@given(
    family=st.sampled_from(["llama", "qwen2", "qwen3", "qwen3_moe"]),
    num_kv_heads=st.integers(1, 3),
    num_groups=st.integers(1, 3),
    head_dim=st.integers(1, 3),
    intermediate_size=st.integers(1, 5),
    num_layers=st.integers(1, 3),
    num_experts=st.integers(1, 4),
    tied=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float16, np.uint16]),
)
def test_round_trip_with_any_sizes_and_dtypes_is_bit_exact(
    family: str,
    num_kv_heads: int,
    num_groups: int,
    head_dim: int,
    intermediate_size: int,
    num_layers: int,
    num_experts: int,
    tied: bool,
    dtype: Any,
) -> None:
    sizes = make_sizes(
        model_type=family,
        num_key_value_heads=num_kv_heads,
        num_attention_heads=num_kv_heads * num_groups,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_experts=num_experts,
        num_experts_per_tok=1,
        moe_intermediate_size=intermediate_size,
        tie_word_embeddings=tied,
    )
    weights = {name: np.abs(100 * tensor).astype(dtype) for name, tensor in make_weights(sizes).items()}
    assert_same(weights, to_hf(to_mindformers(weights, sizes), sizes))


def test_query_key_and_value_are_grouped_by_key_value_head() -> None:
    sizes = make_sizes(num_hidden_layers=1)
    weights = make_weights(sizes)
    # Each row encodes its projection, head and index in the head.
    for projection, num_heads in (("q", 4), ("k", 2), ("v", 2)):
        rows = [f"{projection}{head}.{place}" for head in range(num_heads) for place in range(2)]
        weights[f"model.layers.0.self_attn.{projection}_proj.weight"] = np.array([[row] * 6 for row in rows])
    joined = to_mindformers(weights, sizes)["decoder.layers.0.self_attention.linear_qkv.weight"]
    expected = "q0.0 q0.1 q1.0 q1.1 k0.0 k0.1 v0.0 v0.1 q2.0 q2.1 q3.0 q3.1 k1.0 k1.1 v1.0 v1.1"
    assert list(joined[:, 0]) == expected.split()


def test_gate_and_up_are_interleaved_row_by_row() -> None:
    sizes = make_sizes(num_hidden_layers=1)
    weights = make_weights(sizes)
    for projection in ("gate", "up"):
        weights[f"model.layers.0.mlp.{projection}_proj.weight"] = np.array([[f"{projection}{i}"] * 6 for i in range(4)])
    joined = to_mindformers(weights, sizes)["decoder.layers.0.mlp.linear_fc1.weight"]
    assert list(joined[:, 0]) == ["gate0", "up0", "gate1", "up1", "gate2", "up2", "gate3", "up3"]


def test_experts_are_stacked_with_gate_and_up_side_by_side() -> None:
    sizes = make_sizes(num_hidden_layers=1, **MOE)
    weights = make_weights(sizes)
    converted = to_mindformers(weights, sizes)
    prefix, first, second = (
        "model.layers.0.mlp.experts",
        *(converted[f"decoder.layers.0.mlp.experts.weight{number}"] for number in (1, 2)),
    )
    assert (first.shape, second.shape) == ((3 * 6, 2 * 4), (3 * 4, 6))
    for expert in range(3):
        gate, up, down = (weights[f"{prefix}.{expert}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        np.testing.assert_array_equal(first[6 * expert : 6 * expert + 6], np.concatenate([gate.T, up.T], axis=1))
        np.testing.assert_array_equal(second[4 * expert : 4 * expert + 4], down.T)
    np.testing.assert_array_equal(
        converted["decoder.layers.0.mlp.router.weight"], weights["model.layers.0.mlp.gate.weight"]
    )


def test_tied_embeddings_have_one_tensor_and_a_copy_must_be_equal() -> None:
    sizes = make_sizes(tie_word_embeddings=True)
    weights = make_weights(sizes)
    assert "lm_head.weight" not in weights
    assert "output_layer.weight" not in to_mindformers(weights, sizes)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    assert "output_layer.weight" not in to_mindformers(weights, sizes)
    weights["lm_head.weight"][3, 2] += 1
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        to_mindformers(weights, sizes)


def test_rotary_buffers_of_old_checkpoints_are_ignored() -> None:
    sizes = make_sizes()
    weights = make_weights(sizes)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1)
    assert len(to_mindformers(weights, sizes)) == len(list_mindformers_shapes(sizes))


def test_mismatches_are_reported() -> None:
    sizes = make_sizes()
    weights = make_weights(sizes)
    with pytest.raises(CheckpointError, match=r"missing: model\.norm\.weight$"):
        to_mindformers({name: tensor for name, tensor in weights.items() if name != "model.norm.weight"}, sizes)
    with pytest.raises(CheckpointError, match=r"not part of this model: model\.layers\.2\.x$"):
        to_mindformers({**weights, "model.layers.2.x": np.ones(1)}, sizes)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: has shape \[11, 7\].*\[11, 6\]"):
        to_mindformers({**weights, "lm_head.weight": np.ones((11, 7))}, sizes)
    with pytest.raises(CheckpointError, match="missing: .* and 10 more"):
        to_hf({}, sizes)
    with pytest.raises(CheckpointError, match="linear_fc2"):
        converted = to_mindformers(weights, sizes)
        to_hf({**converted, "decoder.layers.1.mlp.linear_fc2.weight": np.ones((4, 6))}, sizes)
    with pytest.raises(ConfigError, match="gpt_neox"):
        to_hf({}, make_sizes(model_type="gpt_neox"))


def test_a_missing_expert_is_reported() -> None:
    sizes = make_sizes(**MOE)
    weights = make_weights(sizes)
    del weights["model.layers.1.mlp.experts.2.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.1\.mlp\.experts\.2\.up_proj\.weight$"):
        to_mindformers(weights, sizes)


# Published parameter counts, or counted by transformers for the published checkpoint.
PUBLISHED = {
    "llama2_7b": ("llama", 32000, 4096, 11008, 32, 32, 32, 128, False, 6_738_415_616),
    "llama2_13b": ("llama", 32000, 5120, 13824, 40, 40, 40, 128, False, 13_015_864_320),
    "llama2_70b": ("llama", 32000, 8192, 28672, 80, 64, 8, 128, False, 68_976_648_192),
    "llama3_8b": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, False, 8_030_261_248),
    "llama3_70b": ("llama", 128256, 8192, 28672, 80, 64, 8, 128, False, 70_553_706_496),
    "llama32_1b": ("llama", 128256, 2048, 8192, 16, 32, 8, 64, True, 1_235_814_400),
    "llama32_3b": ("llama", 128256, 3072, 8192, 28, 24, 8, 128, True, 3_212_749_824),
    "mistral_7b_v0.1": ("mistral", 32000, 4096, 14336, 32, 32, 8, 128, False, 7_241_732_096),
    "mistral_7b_v0.3": ("mistral", 32768, 4096, 14336, 32, 32, 8, 128, False, 7_248_023_552),
    "mistral_nemo_12b": ("mistral", 131072, 5120, 14336, 40, 32, 8, 128, False, 12_247_782_400),
    "yi_6b": ("llama", 64000, 4096, 11008, 32, 32, 4, 128, False, 6_061_035_520),
    "yi_34b": ("llama", 64000, 7168, 20480, 60, 56, 8, 128, False, 34_388_917_248),
    "deepseek_7b": ("llama", 102400, 4096, 11008, 30, 32, 32, 128, False, 6_910_365_696),
    "qwen25_0.5b": ("qwen2", 151936, 896, 4864, 24, 14, 2, 64, True, 494_032_768),
    "qwen25_7b": ("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, False, 7_615_616_512),
    "qwen25_72b": ("qwen2", 152064, 8192, 29568, 80, 64, 8, 128, False, 72_706_203_648),
    "qwen3_0.6b": ("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, True, 596_049_920),
    "qwen3_1.7b": ("qwen3", 151936, 2048, 6144, 28, 16, 8, 128, True, 1_720_574_976),
    "qwen3_4b": ("qwen3", 151936, 2560, 9728, 36, 32, 8, 128, True, 4_022_468_096),
    "qwen3_8b": ("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False, 8_190_735_360),
    "qwen3_14b": ("qwen3", 151936, 5120, 17408, 40, 40, 8, 128, False, 14_768_307_200),
    "qwen3_32b": ("qwen3", 151936, 5120, 25600, 64, 64, 8, 128, False, 32_762_123_264),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_of_published_models(name: str) -> None:
    family, vocab, hidden, mlp, layers, heads, kv_heads, head_dim, tied, num_parameters = PUBLISHED[name]
    sizes = make_sizes(
        model_type=family,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
    )
    for shapes in (list_hf_shapes(sizes), list_mindformers_shapes(sizes)):
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == num_parameters


@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "mlp", "total", "active"),
    [(2048, 48, 32, 768, 30_532_122_624, 3_353_032_704), (4096, 94, 64, 1536, 235_093_634_560, 22_190_763_520)],
)
def test_parameter_counts_of_published_mixtures_of_experts(
    hidden: int, layers: int, heads: int, mlp: int, total: int, active: int
) -> None:
    """Qwen3-30B-A3B and Qwen3-235B-A22B."""
    sizes = make_sizes(
        model_type="qwen3_moe",
        vocab_size=151936,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=mlp,
    )
    assert (count_parameters(sizes), count_active_parameters(sizes)) == (total, active)
