"""Qwen2 and Qwen2.5, registered with MindFormers as `model_type: qwen2`."""

from __future__ import annotations

from typing import ClassVar

from ascend_cpt.backend.models.config import DecoderConfig
from ascend_cpt.backend.models.decoder import DecoderForCausalLM


class Qwen2Config(DecoderConfig):
    """The configuration of a Qwen2 model, as in its config.json."""

    model_type: ClassVar[str] = "qwen2"


class Qwen2ForCausalLM(DecoderForCausalLM):
    """A Qwen2 model, which is like a Llama model with query, key and value biases."""

    config_class: ClassVar[type[DecoderConfig]] = Qwen2Config
