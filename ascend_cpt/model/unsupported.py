"""Explains why a model family is not supported."""

from __future__ import annotations

from collections.abc import Collection

from ascend_cpt.errors import ConfigError
from ascend_cpt.strict_json import shorten

# model_type → how the family differs from the supported ones.
_DIFFERENCES = {
    "baichuan": "one matrix for query, key and value, and ALiBi or normalized output rows",
    "chatglm": "one matrix for query, key and value, and rotary embeddings on half of each head",
    "cohere": "LayerNorm, and attention and MLP in parallel",
    "deepseek": "a mixture of experts",
    "deepseek_v2": "multi-head latent attention and a mixture of experts",
    "deepseek_v3": "multi-head latent attention and a mixture of experts",
    "gemma": "a GELU MLP, norms that multiply by 1 + weight, and scaled embeddings",
    "gemma2": "a GELU MLP, norms that multiply by 1 + weight, and attention windows in every second layer",
    "gemma3_text": "a GELU MLP, norms that multiply by 1 + weight, and attention windows in most layers",
    "glm": "rotary embeddings on half of each head",
    "glm4": "rotary embeddings on half of each head, and norms after attention and MLP",
    "gpt_neox": "LayerNorm, and attention and MLP in parallel",
    "gpt_oss": "a mixture of experts, and attention with sinks",
    "gpt2": "LayerNorm and learned position embeddings",
    "granite": "scaled embeddings, residuals and logits",
    "internlm2": "one matrix for query, key and value (wqkv)",
    "mixtral": "a mixture of experts",
    "olmo2": "norms after attention and MLP instead of before",
    "phi": "LayerNorm, and rotary embeddings on part of each head",
    "phi3": "one matrix for query, key and value, and one for gate and up",
    "qwen": "one matrix for query, key and value (c_attn)",
    "qwen2_moe": "a mixture of experts",
    "qwen3_next": "linear attention and a mixture of experts",
    "stablelm": "LayerNorm, and rotary embeddings on part of each head",
    "starcoder2": "LayerNorm and an MLP without a gate",
}


def find_difference(family: str) -> str | None:
    """Return how an unsupported family differs from the supported ones, if that is known."""
    return _DIFFERENCES.get(family)


def refuse_family(family: str, supported: Collection[str]) -> ConfigError:
    """Return the error for a `model_type` that is not one of the supported ones."""
    difference = find_difference(family)
    reason = f" ({difference})" if difference else ""
    return ConfigError(
        f"model_type: {shorten(family)} is not supported{reason}; only {', '.join(sorted(supported))} are"
    )
