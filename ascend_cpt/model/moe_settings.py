"""MindFormers' settings for a mixture of experts: those that are fixed, and the weights of the routers' losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_cpt.model.rope import read_number
from ascend_cpt.model.sizes import MOE_FAMILIES

# MindFormers' key for the weight of the balance loss, and the key in config.json, which MindFormers ignores.
BALANCE_KEY, HF_BALANCE_KEY = "moe_aux_loss_coeff", "router_aux_loss_coef"
LOGITS_KEY = "moe_z_loss_coeff"
_DEFAULT_BALANCE_WEIGHT = 0.001  # transformers' default

# The routing of Qwen3-MoE. MindFormers' defaults and its example configuration compute another model.
FIXED_SETTINGS: dict[str, Any] = {
    "moe_grouped_gemm": True,
    "moe_router_dtype": "float32",
    "moe_router_score_function": "softmax",
    "moe_router_enable_expert_bias": False,
    "moe_router_force_expert_balance": False,
    "moe_router_load_balancing_type": "gbs_aux_loss",
    "moe_router_num_groups": None,
    "moe_router_group_topk": None,
    "moe_token_dispatcher_type": "alltoall",
    "moe_expert_capacity_factor": None,
    "moe_layer_freq": 1,
    "moe_shared_expert_intermediate_size": None,
    "shared_expert_num": 0,
    "first_k_dense_replace": None,
    "routed_scaling_factor": 1.0,
    "print_expert_load": False,
    "enable_expert_relocation": False,
    "calculate_per_token_loss": False,
}
# Other names that MindFormers accepts for sizes in config.json.
_ALIASES = {
    "num_moe_experts": "num_experts",
    "n_routed_experts": "num_experts",
    "moe_router_topk": "num_experts_per_tok",
    "moe_ffn_hidden_size": "moe_intermediate_size",
    "moe_router_topk_scaling_factor": "routed_scaling_factor",
    "router_dense_type": "moe_router_dtype",
    "n_shared_experts": "shared_expert_num",
}


def find_moe_problems(model_config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (key, what is wrong and what to do) for every setting of a mixture of experts that is not supported."""
    if model_config.get("model_type") not in MOE_FAMILIES:
        return []
    problems = [
        (key, f"{model_config[key]!r} is not supported; remove it, or set it to {value}")
        for key, value in FIXED_SETTINGS.items()
        if model_config.get(key) is not None and model_config[key] != value
    ]
    problems += [(key, f"remove it; set {name}") for key, name in _ALIASES.items() if model_config.get(key) is not None]
    for key in (BALANCE_KEY, HF_BALANCE_KEY, LOGITS_KEY):
        if read_number(model_config, key, 0.0) < 0:
            problems.append((key, "must not be negative"))
    return problems


def read_loss_weights(model_config: Mapping[str, Any]) -> tuple[float, float]:
    """Return the weights of the balance loss and of the z-loss, both per layer."""
    default = read_number(model_config, HF_BALANCE_KEY, _DEFAULT_BALANCE_WEIGHT)
    return read_number(model_config, BALANCE_KEY, default), read_number(model_config, LOGITS_KEY, 0.0)
