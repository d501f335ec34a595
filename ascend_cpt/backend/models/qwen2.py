"""Qwen2 and Qwen2.5, as MindFormers finds them by `model_type: qwen2`."""

from __future__ import annotations

from typing import ClassVar

from ascend_cpt.backend.models.config import DecoderConfig
from ascend_cpt.backend.models.decoder import DecoderForCausalLM


class Qwen2Config(DecoderConfig):
    """The configuration of a Qwen2, as in its config.json."""

    model_type: ClassVar[str] = "qwen2"


class Qwen2ForCausalLM(DecoderForCausalLM):
    """A Qwen2: as a Llama, with a bias on query, key and value."""

    config_class: ClassVar[type[DecoderConfig]] = Qwen2Config
