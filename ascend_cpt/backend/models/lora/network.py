"""Adds adapters to the networks that MindFormers' trainer builds, and freezes all their weights."""

from __future__ import annotations

from functools import partial
from typing import Any

from ascend_cpt.backend.models.built_networks import change_built_networks, find_gpt_model
from ascend_cpt.backend.models.lora.layers import add_adapter
from ascend_cpt.model.lora import LoraSettings, list_adapted_layers
from ascend_cpt.model.sizes import ModelSizes

_PREFIX = "decoder.layers."


def add_adapters(network: Any, sizes: ModelSizes, settings: LoraSettings, *, seed: int) -> None:
    """Freeze a network's weights and give its layers adapters, which are trained. `seed` is that of A."""
    for parameter in network.get_parameters():
        parameter.requires_grad = False
    model = find_gpt_model(network)
    for adapted in list_adapted_layers(sizes, settings):
        number, _, path = adapted.name.removeprefix(_PREFIX).partition(".")
        decoder_layer = model.decoder.layers[int(number)]
        layer = decoder_layer
        for part in path.split("."):
            layer = getattr(layer, part)
        stage = decoder_layer.pipeline_stage if model.pp > 1 else None
        add_adapter(layer, adapted, scale=settings.scale, seed=seed, pipeline_stage=stage)


def train_adapters(sizes: ModelSizes, settings: LoraSettings, *, seed: int) -> None:
    """Make networks that MindFormers' trainer builds after this call train adapters instead of their weights."""
    change_built_networks(partial(add_adapters, sizes=sizes, settings=settings, seed=seed))
