"""Qwen3-MoE, and Qwen3 with scaled rotary frequencies, registered as `model_type: qwen3_moe` and `qwen3`."""

from __future__ import annotations

from typing import Any, ClassVar

from mindformers.models.qwen3 import Qwen3Config, Qwen3ForCausalLM

from ascend_cpt.backend.models.config import DecoderConfig
from ascend_cpt.backend.models.decoder import DecoderForCausalLM
from ascend_cpt.backend.models.experts.router import use_expert_router


class ScaledQwen3Config(DecoderConfig):
    """The configuration of a Qwen3 model with `rope_scaling` or `rope_parameters`, as in its config.json."""

    model_type: ClassVar[str] = "qwen3"


class ScaledQwen3ForCausalLM(DecoderForCausalLM):
    """A dense Qwen3 model with scaled rotary frequencies, which MindFormers' class does not support.

    MindFormers' YaRN is written for multi-head latent attention. It multiplies the angles, instead of their cosines and
    sines, by the attention factor.
    """

    config_class: ClassVar[type[DecoderConfig]] = ScaledQwen3Config
    normalizes_queries: ClassVar[bool] = True


class Qwen3ConfigByRope:
    """MindFormers' Qwen3Config, or a ScaledQwen3Config if the fields contain rope settings besides the base."""

    def __new__(cls, **fields: Any) -> Any:
        is_scaled = fields.get("rope_scaling") or fields.get("rope_parameters")
        return ScaledQwen3Config(**fields) if is_scaled else Qwen3Config(**fields)


class Qwen3ByRope:
    """MindFormers' Qwen3, or a ScaledQwen3ForCausalLM for a ScaledQwen3Config."""

    def __new__(cls, config: Any) -> Any:
        return ScaledQwen3ForCausalLM(config) if isinstance(config, ScaledQwen3Config) else Qwen3ForCausalLM(config)


class Qwen3MoeConfig(DecoderConfig):
    """The configuration of a Qwen3-MoE model, as in its config.json, with `moe_aux_loss_coeff` and `moe_z_loss_coeff`.

    The balance loss has the weight `moe_aux_loss_coeff`, or else `router_aux_loss_coef` of config.json.
    """

    model_type: ClassVar[str] = "qwen3_moe"


class Qwen3MoeForCausalLM(DecoderForCausalLM):
    """A Qwen3 model with experts in all layers, without shared experts and without a limit on an expert's tokens."""

    config_class: ClassVar[type[DecoderConfig]] = Qwen3MoeConfig
    normalizes_queries: ClassVar[bool] = True

    def __init__(self, config: DecoderConfig) -> None:
        with use_expert_router():
            super().__init__(config)
