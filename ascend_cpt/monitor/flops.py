"""Training FLOPs of a model and the peak of a device: what the model FLOPs utilization (MFU) is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Dense BF16 peak of the matrix units, FLOP/s of one device, by the name that the driver gives. It is cores × FLOPs of a
# core in a cycle (8192: 16 × 16 × 16 multiply-adds) × clock of CANN's `platform_config/<name>.ini`, for the B2
# 24 × 8192 × 1.8 GHz, and what torchtitan-npu (github.com/Ascend) takes for MFU. Data sheets give a little more
# (400, 376, 313 and 280 TFLOPS for B1 to B4): they add the vector units, which no matrix product uses.
PEAK_FLOPS = {
    "Ascend910B1": 373.88e12,
    "Ascend910B2": 353.8944e12,
    "Ascend910B3": 294.912e12,
    "Ascend910B4": 245.76e12,
    "Ascend910B4-1": 245.76e12,
    "Ascend910_9362": 353.8944e12,
    "Ascend910_9392": 353.8944e12,
}


def find_peak_flops(device_name: str) -> float | None:
    """Return the peak of a device by its exact name, or None for one that is not in the table: never a guess."""
    return PEAK_FLOPS.get(device_name)


def count_matmul_parameters(model: Mapping[str, Any]) -> int:
    """Return the parameters of a decoder that multiply a token's vector: projections, SwiGLU and the output layer.

    `model` is a `model_config`. The input embedding is a look-up and counts only where the output layer shares it.
    """
    sizes = _read_sizes(model)
    attention = sizes["hidden"] * (2 * sizes["query"] + 2 * sizes["key_value"])
    return int(
        sizes["layers"] * (attention + 3 * sizes["hidden"] * sizes["feed_forward"]) + sizes["hidden"] * sizes["vocab"]
    )


def count_parameters(model: Mapping[str, Any]) -> int:
    """Return all parameters of a decoder but the few of norms and biases."""
    shared = bool(model.get("tie_word_embeddings", False))
    return count_matmul_parameters(model) + (0 if shared else int(model["hidden_size"]) * int(model["vocab_size"]))


def count_training_flops_per_token(model: Mapping[str, Any], seq_length: int) -> float:
    """Return the FLOPs that training one token takes: 6 × matrix parameters + 12 × layers × heads × head size × length.

    The formula of MFU in PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): a multiply-add is 2 FLOPs, the
    backward pass takes twice the forward pass, attention looks at the whole length (not half of it, as a causal kernel
    could), and what is computed again to save memory does not count.
    """
    sizes = _read_sizes(model)
    return 6.0 * count_matmul_parameters(model) + 12.0 * sizes["layers"] * sizes["query"] * seq_length


def _read_sizes(model: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of a `model_config`; `query` and `key_value` are the widths of these projections."""
    hidden, num_heads = int(model["hidden_size"]), int(model["num_attention_heads"])
    head_dim = int(model.get("head_dim") or hidden // num_heads)
    return {
        "hidden": hidden,
        "layers": int(model["num_hidden_layers"]),
        "query": num_heads * head_dim,
        "key_value": int(model.get("num_key_value_heads") or num_heads) * head_dim,
        "feed_forward": int(model.get("intermediate_size") or 4 * hidden),
        "vocab": int(model["vocab_size"]),
    }
