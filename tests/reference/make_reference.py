"""Makes the reference values of tiny random models with transformers and torch, for the tests beside it.

Run it where both are installed, from the repository root:

    python tests/reference/make_reference.py

For every model it writes a Hugging Face folder (config.json, model.safetensors in float16) and expected.npz: tokens,
labels, the logits and the loss of transformers in float32 from those weights, the rotary inverse frequencies, the
factor of cos and sin with YaRN, and the router logits (layer, token, expert) of a mixture of experts.
Same versions, same bytes.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
BATCH_SIZE, SEQ_LENGTH = 2, 32
IGNORED_LABEL = -100
# A token that no sample holds, for configurations that need a padding token.
PAD_TOKEN = 127

_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA31_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 5.0,
    "original_max_position_embeddings": 32,
}
# The samples are twice as long as the original length. With these betas, some frequencies are kept, some divided by
# `factor`, and some in between.
_YARN_ROPE = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 2.0,
    "beta_slow": 0.25,
}
_MOE_SIZES = {**_SIZES, "rope_theta": 1e6, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# Qwen2 has no field for the size of a head.
_QWEN2_SIZES = {key: value for key, value in _SIZES.items() if key != "head_dim"}
# name → (model_type, fields of config.json). Qwen3's heads are wider than hidden_size / heads, as in Qwen3-0.6B.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {**_SIZES, "rope_theta": 1e6, "tie_word_embeddings": False}),
    "qwen3_tied": ("qwen3", {**_SIZES, "rope_theta": 1e6, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama2": ("llama", {**_SIZES, "num_key_value_heads": 4, "head_dim": 12, "tie_word_embeddings": False}),
    "llama3": ("llama", {**_SIZES, "rope_theta": 5e5, "tie_word_embeddings": False}),
    "llama31": ("llama", {**_SIZES, "rope_scaling": _LLAMA31_ROPE, "tie_word_embeddings": False}),
    "llama32_tied": ("llama", {**_SIZES, "rope_scaling": _LLAMA31_ROPE, "tie_word_embeddings": True}),
    "qwen25_tied": ("qwen2", {**_QWEN2_SIZES, "rope_theta": 1e6, "tie_word_embeddings": True}),
    # Heads narrower than hidden_size / heads, as in Mistral Nemo, and a window that is longer than the samples.
    "mistral": ("mistral", {**_SIZES, "head_dim": 8, "rope_theta": 1e6, "sliding_window": 40}),
    "qwen3_moe": ("qwen3_moe", {**_MOE_SIZES, "norm_topk_prob": True, "tie_word_embeddings": False}),
    "qwen3_moe_tied": (
        "qwen3_moe",
        {
            **_MOE_SIZES,
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
            "num_experts": 5,
            "num_experts_per_tok": 3,
        },
    ),
    "qwen3_yarn": ("qwen3", {**_SIZES, "rope_theta": 1e4, "rope_scaling": _YARN_ROPE, "tie_word_embeddings": False}),
    "llama_yarn": (
        "llama",
        {
            **_SIZES,
            "rope_scaling": {**_YARN_ROPE, "mscale": 1.5, "mscale_all_dim": 0.5, "truncate": False},
            "tie_word_embeddings": True,
        },
    ),
    "qwen25_yarn": ("qwen2", {**_QWEN2_SIZES, "rope_scaling": _YARN_ROPE, "tie_word_embeddings": True}),
    "mistral_yarn": (
        "mistral",
        {**_SIZES, "rope_scaling": _YARN_ROPE, "sliding_window": None, "tie_word_embeddings": True},
    ),
    "qwen3_moe_yarn": (
        "qwen3_moe",
        {
            **_MOE_SIZES,
            "rope_theta": 1e4,
            "rope_scaling": {**_YARN_ROPE, "attention_factor": 1.3},
            "norm_topk_prob": True,
            "tie_word_embeddings": True,
            "num_experts": 5,
        },
    ),
}


def make_model(model_type: str, config_fields: dict[str, Any], seed: int) -> Any:
    """Return a model with random weights, large enough that attention is far from uniform, all exact in float16."""
    config = transformers.AutoConfig.for_model(model_type, **config_fields)
    config.architectures = None
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            value = 1 + 0.2 * noise if name.endswith("norm.weight") else 0.1 * noise
            weight.copy_(value.half().float())
    return model


def compute_expected(model: Any, seed: int) -> dict[str, np.ndarray]:
    """Return tokens and labels (batch, length), some labels ignored, and what transformers computes from them."""
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, PAD_TOKEN, (BATCH_SIZE, SEQ_LENGTH + 1))
    tokens, labels = samples[:, :-1], samples[:, 1:].copy()
    labels[0, -5:] = IGNORED_LABEL
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(tokens)).logits
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), torch.tensor(labels).reshape(-1), ignore_index=IGNORED_LABEL
        )
    expected = {
        "tokens": tokens.astype(np.int32),
        "labels": labels.astype(np.int32),
        "logits": logits.numpy(),
        "loss": loss.numpy(),
        "inverse_frequencies": model.model.rotary_emb.inv_freq.numpy(),
    }
    if getattr(model.config, "rope_scaling", None) and model.config.rope_scaling["rope_type"] == "yarn":
        expected["attention_scaling"] = np.array(model.model.rotary_emb.attention_scaling)
    if hasattr(model.config, "num_experts"):
        with torch.no_grad():
            of_layers = model(input_ids=torch.tensor(tokens), output_router_logits=True).router_logits
        expected["router_logits"] = torch.stack(of_layers).numpy()
    return expected


def main() -> None:
    for seed, (name, (model_type, config_fields)) in enumerate(MODELS.items()):
        model = make_model(model_type, config_fields, seed)
        expected = compute_expected(model, seed)
        model.half().save_pretrained(HERE / name)
        (HERE / name / "generation_config.json").unlink()
        np.savez_compressed(HERE / name / "expected.npz", **expected)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    versions["transformers"] = transformers.__version__
    (HERE / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
