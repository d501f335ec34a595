"""Mistral, registered with MindFormers as `model_type: mistral`."""

from __future__ import annotations

from typing import ClassVar

from ascend_cpt.backend.models.config import DecoderConfig
from ascend_cpt.backend.models.decoder import DecoderForCausalLM


class MistralConfig(DecoderConfig):
    """The configuration of a Mistral model, as in its config.json."""

    model_type: ClassVar[str] = "mistral"


class MistralForCausalLM(DecoderForCausalLM):
    """A Mistral model: like Llama 3, for texts that are not longer than its attention window."""

    config_class: ClassVar[type[DecoderConfig]] = MistralConfig
