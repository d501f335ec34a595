"""FLOPs and parameters of published models, and peak FLOPS of devices."""

from __future__ import annotations

from typing import Any

import pytest

from ascend_cpt.devices import PEAK_FLOPS, find_peak_flops
from ascend_cpt.model.flops import count_layer_matmul_parameters, count_training_flops_per_token
from ascend_cpt.model.parameters import count_parameters
from ascend_cpt.model.sizes import read_sizes

LLAMA2_7B = {
    "model_type": "llama",
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32,
}  # fmt: skip
QWEN3_8B = {
    "model_type": "qwen3",
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip


def test_parameter_counts_of_published_models() -> None:
    assert count_parameters(read_sizes(LLAMA2_7B)) == 6_738_415_616
    assert count_parameters(read_sizes(QWEN3_8B)) == 8_190_735_360


def test_flops_match_a_count_by_layer() -> None:
    # Llama 2 7B, per token, forward: 2 FLOPs per multiply-add in all matrices, and attention over 4096 tokens.
    layer = 2 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 2 * 2 * 4096 * 4096
    forward = 32 * layer + 2 * 4096 * 32000
    assert count_training_flops_per_token(read_sizes(LLAMA2_7B), 4096) == 3 * forward


@pytest.mark.parametrize(
    ("config", "seq_length", "flops"), [(LLAMA2_7B, 4096, 46_084_915_200.0), (QWEN3_8B, 32768, 103_390_642_176.0)]
)
def test_flops_per_token_are_pinned(config: dict[str, Any], seq_length: int, flops: float) -> None:
    assert count_training_flops_per_token(read_sizes(config), seq_length) == flops


def test_tied_embeddings_count_once_but_have_output_flops() -> None:
    tied = read_sizes({**QWEN3_8B, "tie_word_embeddings": True})
    untied = read_sizes(QWEN3_8B)
    assert count_parameters(untied) - count_parameters(tied) == 151936 * 4096
    assert count_training_flops_per_token(tied, 1024) == count_training_flops_per_token(untied, 1024)


@pytest.mark.parametrize("name", ["CPU", "Ascend910", "Ascend910B", "Ascend910B9", "", "ascend910b3"])
def test_an_unknown_device_has_no_peak(name: str) -> None:
    assert find_peak_flops(name) is None


def test_peaks_are_cores_times_clock() -> None:
    assert find_peak_flops("Ascend910B2") == pytest.approx(24 * 8192 * 1.8e9)
    assert find_peak_flops("Ascend910B3") == pytest.approx(20 * 8192 * 1.8e9)
    assert find_peak_flops("Ascend910B4") == pytest.approx(20 * 8192 * 1.5e9)
    assert all(2e14 < peak < 4e14 for peak in PEAK_FLOPS.values())


def test_only_the_chosen_experts_count() -> None:
    sizes = read_sizes(
        {
            **QWEN3_8B,
            "model_type": "qwen3_moe",
            "num_experts": 16,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 768,
        }
    )
    attention = 2 * 4096 * (4096 + 1024)
    assert count_layer_matmul_parameters(sizes) == attention + 4096 * 16 + 2 * 3 * 4096 * 768
