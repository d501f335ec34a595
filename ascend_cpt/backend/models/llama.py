"""Llama 2 and Llama 3 (3, 3.1, 3.2), registered with MindFormers as `model_type: llama`."""

from __future__ import annotations

from typing import ClassVar

from ascend_cpt.backend.models.config import DecoderConfig
from ascend_cpt.backend.models.decoder import DecoderForCausalLM


class LlamaConfig(DecoderConfig):
    """The configuration of a Llama model, as in its config.json."""

    model_type: ClassVar[str] = "llama"


class LlamaForCausalLM(DecoderForCausalLM):
    """A Llama model: grouped or full key-value heads, tied or untied embeddings, no biases, no query or key norms."""

    config_class: ClassVar[type[DecoderConfig]] = LlamaConfig
