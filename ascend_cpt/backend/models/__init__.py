"""Model families added to MindFormers, built on its mcore GPTModel.

Importing this package registers them with MindFormers, so that `model_config: {model_type: llama, architectures:
[LlamaForCausalLM]}` with `use_legacy: False` builds the classes here. MindFormers registers its legacy Llama under
another prefix. Its Qwen2, which cannot be trained, and its Qwen3-MoE are replaced. Its Qwen3 is built unless the rotary
frequencies are scaled.
"""

from __future__ import annotations

from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

from ascend_cpt.backend.models.llama import LlamaConfig, LlamaForCausalLM
from ascend_cpt.backend.models.mistral import MistralConfig, MistralForCausalLM
from ascend_cpt.backend.models.qwen2 import Qwen2Config, Qwen2ForCausalLM
from ascend_cpt.backend.models.qwen3 import (
    Qwen3ByRope,
    Qwen3ConfigByRope,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    ScaledQwen3ForCausalLM,
)

__all__ = [
    "LlamaConfig",
    "LlamaForCausalLM",
    "MistralConfig",
    "MistralForCausalLM",
    "Qwen2Config",
    "Qwen2ForCausalLM",
    "Qwen3MoeConfig",
    "Qwen3MoeForCausalLM",
    "ScaledQwen3ForCausalLM",
    "register_models",
]

_FAMILIES = (
    (LlamaConfig, LlamaForCausalLM),
    (MistralConfig, MistralForCausalLM),
    (Qwen2Config, Qwen2ForCausalLM),
    (Qwen3MoeConfig, Qwen3MoeForCausalLM),
)


def register_models() -> None:
    """Register each family's configuration (by model_type) and network (by class name) with MindFormers."""
    register = MindFormerRegister.register
    for config_class, model_class in _FAMILIES:
        register(MindFormerModuleType.CONFIG, legacy=False, search_names=config_class.model_type)(config_class)
        register(MindFormerModuleType.MODELS, legacy=False)(model_class)
    # MindFormers' own names, so that they are replaced.
    register(MindFormerModuleType.CONFIG, legacy=False, alias="Qwen3Config", search_names="qwen3")(Qwen3ConfigByRope)
    register(MindFormerModuleType.MODELS, legacy=False, alias="Qwen3ForCausalLM")(Qwen3ByRope)


register_models()
