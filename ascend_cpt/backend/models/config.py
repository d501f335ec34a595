"""The configuration of a decoder for MindFormers' GPTModel, made from Hugging Face config.json fields."""

from __future__ import annotations

from typing import Any, ClassVar

from mindformers.models.configuration_utils import PretrainedConfig
from mindformers.parallel_core.config_converter import ConfigConverter, ConversionContext
from mindformers.parallel_core.transformer_config import TransformerConfig
from mindformers.parallel_core.transformer_config_utils import DEFAULT_WHITE_KEY, is_float_32

from ascend_cpt.errors import ConfigError
from ascend_cpt.model.moe_settings import (
    BALANCE_KEY,
    FIXED_SETTINGS,
    HF_BALANCE_KEY,
    LOGITS_KEY,
    find_moe_problems,
    read_loss_weights,
)
from ascend_cpt.model.sizes import ModelSizes, read_sizes, unify_value

# MindFormers masks tokens equal to pad_token_id in the loss and attention. No token has id -1.
NO_PADDING = -1

# The fixed architecture; the model's configuration must not set other values.
_ARCHITECTURE: dict[str, Any] = {
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "gated_linear_unit": True,
    "hidden_act": "silu",
    "position_embedding_type": "rope",
    # The layouts used by the tables in `ascend_cpt.weights`.
    "use_contiguous_weight_layout_attention": False,
    "use_interleaved_weight_layout_mlp": True,
}
# MindFormers' default dropout is 0.1; no published recipe of these models uses dropout.
_DEFAULTS: dict[str, Any] = {
    "seq_length": 4096,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "is_dynamic": False,
}
# Fields of config.json that do not affect training, or that `read_sizes` already handles.
_NOT_CONVERTED = {
    "attention_bias",
    "auto_map",
    "dtype",
    "layer_types",
    "max_window_layers",
    "mlp_bias",
    "pretraining_tp",
    "rope_parameters",
    "rope_scaling",
    "sliding_window",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "use_sliding_window",
}


class DecoderConverter(ConfigConverter):
    """Renames config.json fields to the names used in MindFormers' TransformerConfig."""

    CONFIG_MAPPING: ClassVar[dict[str, Any]] = {
        "head_dim": "kv_channels",
        "initializer_range": "init_method_std",
        "intermediate_size": "ffn_hidden_size",
        "num_hidden_layers": "num_layers",
        "num_key_value_heads": "num_query_groups",
        "rms_norm_eps": "layernorm_epsilon",
        "rope_theta": "rotary_base",
        "softmax_compute_dtype": ("attention_softmax_in_fp32", is_float_32),
    }

    @classmethod
    def _pre_process(cls, model_config: dict[str, Any], ctx: ConversionContext) -> None:
        super()._pre_process(model_config, ctx)
        for key in _NOT_CONVERTED:
            model_config.pop(key, None)
        unknown = sorted(set(model_config) - set(ctx.mapping) - DEFAULT_WHITE_KEY)
        if unknown:
            raise ConfigError(
                f"model_config: unknown keys for model_type {model_config['model_type']}: {', '.join(unknown)}; remove "
                "them"
            )


class MoeConverter(DecoderConverter):
    """The same for a mixture of experts."""

    CONFIG_MAPPING: ClassVar[dict[str, Any]] = {
        **DecoderConverter.CONFIG_MAPPING,
        "moe_intermediate_size": "moe_ffn_hidden_size",
        "num_experts": "num_moe_experts",
        "num_experts_per_tok": "moe_router_topk",
        "routed_scaling_factor": "moe_router_topk_scaling_factor",
    }

    @classmethod
    def _pre_process(cls, model_config: dict[str, Any], ctx: ConversionContext) -> None:
        for key in ("decoder_sparse_step", "mlp_only_layers", "output_router_logits", HF_BALANCE_KEY):
            model_config.pop(key, None)
        super()._pre_process(model_config, ctx)


class DecoderConfig(PretrainedConfig):
    """A decoder with RMSNorm, rotary embeddings and a gated MLP or experts; fields and defaults as in transformers.

    MindFormers' TransformerConfig fields are accepted in addition to the config.json fields.

    Raises:
        ConfigError: for a missing or unknown field, or an unsupported value.
    """

    model_type: ClassVar[str]

    def __init__(self, **fields: Any) -> None:
        for key, value in _ARCHITECTURE.items():
            if unify_value(key, fields.get(key, value)) != value:
                raise ConfigError(
                    f"model_config.{key}: {fields[key]} is not supported for {self.model_type}; set it to {value}"
                )
        sizes = read_sizes({**fields, "model_type": self.model_type})
        given = {**_DEFAULTS, **_ARCHITECTURE, **fields, **_list_resolved_fields(sizes)}
        if sizes.experts is not None:
            for key, problem in find_moe_problems({**fields, "model_type": self.model_type}):
                raise ConfigError(f"model_config.{key}: {problem}")
            weights = dict(zip((BALANCE_KEY, LOGITS_KEY), read_loss_weights(fields), strict=True))
            given |= {**FIXED_SETTINGS, **weights, "norm_topk_prob": sizes.experts.normalizes}
        if given.get("pad_token_id") is None:
            given["pad_token_id"] = NO_PADDING
        super().__init__(**given)

    @property
    def sizes(self) -> ModelSizes:
        """The model's sizes, which determine the weights' shapes."""
        return read_sizes(self.to_dict())

    def convert_to_transformer_config(self, is_mla_model: bool = False) -> TransformerConfig:
        """Return the configuration as MindFormers' TransformerConfig; called by MindFormers."""
        converter = DecoderConverter if self.sizes.experts is None else MoeConverter
        return converter.convert(self.to_dict(), is_mla_model=is_mla_model)


def _list_resolved_fields(sizes: ModelSizes) -> dict[str, Any]:
    """Return, in MindFormers' form, the fields that config.json may omit or write in two ways."""
    return {
        "add_qkv_bias": sizes.has_qkv_bias,
        "head_dim": sizes.head_dim,
        "num_key_value_heads": sizes.num_kv_heads,
        "rms_norm_eps": sizes.rms_norm_eps,
        "rope_theta": sizes.rope.theta,
        "tie_word_embeddings": sizes.tie_word_embeddings,
    }
