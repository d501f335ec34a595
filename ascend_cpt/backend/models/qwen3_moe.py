"""Qwen3-MoE, registered with MindFormers as `model_type: qwen3_moe`."""

from __future__ import annotations

from typing import ClassVar

from ascend_cpt.backend.models.config import DecoderConfig
from ascend_cpt.backend.models.decoder import DecoderForCausalLM
from ascend_cpt.backend.models.experts.router import use_expert_router


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
