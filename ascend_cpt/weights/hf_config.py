"""Creates a trained model's config.json from its model configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_cpt.model.families import ARCHITECTURES
from ascend_cpt.model.sizes import read_attention_window, read_sizes
from ascend_cpt.model.unsupported import refuse_family

# Fields of config.json that have the same name in the model configuration.
_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "router_aux_loss_coef",
)


def make_config(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Hugging Face configuration for the `model.model_config` of a training run.

    Default values are written explicitly, so that transformers builds the same model.

    Raises:
        ConfigError: the model is not supported.
    """
    sizes = read_sizes(model_config)
    if sizes.family not in ARCHITECTURES:
        raise refuse_family(sizes.family, ARCHITECTURES)
    config = {key: model_config[key] for key in _FIELDS if model_config.get(key) is not None}
    config.update(
        num_key_value_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        rms_norm_eps=sizes.rms_norm_eps,
        rope_theta=sizes.rope.theta,
        tie_word_embeddings=sizes.tie_word_embeddings,
        hidden_act="silu",
        model_type=sizes.family,
        architectures=[ARCHITECTURES[sizes.family]],
    )
    if sizes.family == "mistral":
        # transformers takes 4096 if the field is missing.
        config["sliding_window"] = read_attention_window(model_config)
    if sizes.experts is not None:
        config.update(norm_topk_prob=sizes.experts.normalizes, decoder_sparse_step=1, mlp_only_layers=[])
    return config
