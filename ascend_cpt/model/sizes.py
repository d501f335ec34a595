"""Reads a model's sizes from its Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.errors import CheckpointError, ConfigError
from ascend_cpt.model.rope import Rope, read_number, read_rope
from ascend_cpt.strict_json import JsonError, read_json_object

CONFIG_NAME = "config.json"
# MindFormers' names for a SiLU-gated MLP, which transformers calls `silu`.
_SILU_NAMES = ("swiglu", "fusedswiglu")
# Fields that change the model's computation, with the only supported value.
_FIXED_FIELDS: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
}
_MISTRAL_WINDOW = 4096
"""transformers' default."""
# The same for a mixture of experts: every layer has experts.
_FIXED_MOE_FIELDS: dict[str, Any] = {"decoder_sparse_step": 1, "mlp_only_layers": []}
MOE_FAMILIES = ("qwen3_moe",)


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts of every layer in a mixture-of-experts model: gated MLPs, of which a router chooses a few per token.

    The router's probabilities are a softmax over all experts. With `normalizes`, those of a token's chosen experts are
    divided by their sum.
    """

    num_experts: int
    num_per_token: int
    intermediate_size: int
    normalizes: bool


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes, in elements, and options of a decoder-only model that determine its weights and computation.

    `intermediate_size` is that of the MLP of a dense model; a mixture of experts does not use it.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    has_qkv_bias: bool
    tie_word_embeddings: bool
    rms_norm_eps: float
    rope: Rope
    experts: Experts | None = None

    @property
    def query_size(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of `folder`/config.json.

    Raises:
        CheckpointError: the file is missing or is not a JSON object.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {CONFIG_NAME}: give the folder of a Hugging Face model")
    try:
        return read_json_object(path)
    except (OSError, JsonError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def select_model_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json without fields that MindFormers would mistake for its own settings."""
    excluded = ("dtype", "torch_dtype", "transformers_version", "quantization_config")
    return {key: value for key, value in config.items() if key not in excluded}


def unify_value(key: str, value: Any) -> Any:
    """Return a model configuration field's value, using one name for each activation function."""
    return "silu" if key == "hidden_act" and value in _SILU_NAMES else value


def read_sizes(config: Mapping[str, Any]) -> ModelSizes:
    """Read the sizes from a Hugging Face model configuration, using transformers' defaults for missing fields.

    Raises:
        ConfigError: a field is missing or its value is not supported.
    """
    family = str(config.get("model_type"))
    is_moe = family in MOE_FAMILIES
    for key, supported in {**_FIXED_FIELDS, **(_FIXED_MOE_FIELDS if is_moe else {})}.items():
        if unify_value(key, config.get(key, supported)) not in (supported, None):
            raise ConfigError(f"{key}: {config[key]} is not supported; only {supported} is")
    num_heads = _read_count(config, "num_attention_heads")
    hidden_size = _read_count(config, "hidden_size")
    if config.get("head_dim") is None and hidden_size % num_heads:
        raise ConfigError(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}")
    num_kv_heads = _read_count(config, "num_key_value_heads") if config.get("num_key_value_heads") else num_heads
    if num_heads % num_kv_heads:
        raise ConfigError(f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}")
    return ModelSizes(
        family=family,
        vocab_size=_read_count(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_read_count(config, "intermediate_size"),
        num_layers=_read_count(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_read_count(config, "head_dim") if config.get("head_dim") else hidden_size // num_heads,
        # Not in Qwen2's configuration, because its query, key and value projections always have a bias.
        has_qkv_bias=family == "qwen2",
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        rms_norm_eps=read_number(config, "rms_norm_eps", 1e-6),
        rope=read_rope(config),
        experts=_read_experts(config) if is_moe else None,
    )


def _read_experts(config: Mapping[str, Any]) -> Experts:
    num_experts, num_per_token = _read_count(config, "num_experts"), _read_count(config, "num_experts_per_tok")
    if num_per_token > num_experts:
        raise ConfigError(f"num_experts_per_tok {num_per_token} is above num_experts {num_experts}")
    return Experts(
        num_experts=num_experts,
        num_per_token=num_per_token,
        intermediate_size=_read_count(config, "moe_intermediate_size"),
        normalizes=bool(config.get("norm_topk_prob", False)),
    )


def read_attention_window(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a token attends to, itself included, or None for all tokens before it.

    Only Mistral has a window by default. For other families, `read_sizes` rejects `use_sliding_window`, without which
    transformers ignores `sliding_window`.

    Raises:
        ConfigError: the window is not a positive whole number.
    """
    if config.get("model_type") != "mistral" or config.get("sliding_window", _MISTRAL_WINDOW) is None:
        return None
    return _read_count({"sliding_window": _MISTRAL_WINDOW, **config}, "sliding_window")


def find_window_problem(config: Mapping[str, Any], seq_length: int) -> str | None:
    """Return why rows of `seq_length` tokens are not possible with the model's attention window, if they are not."""
    window = read_attention_window(config)
    if window is None or seq_length <= window:
        return None
    return (
        f"sliding_window: {window} tokens, fewer than the rows of {seq_length}; attention windows are not supported, "
        f"so use rows of at most {window} tokens, or set sliding_window: null to train with full attention"
    )


def _read_count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key}: expected a positive whole number in the model's configuration, got {value}")
    return value
