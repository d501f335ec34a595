"""Freezes weights in networks built by MindFormers' trainer, before the trainer makes the optimizer."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any


def freeze_weights(names: Collection[str]) -> None:
    """Freeze the weights with these names in networks built after this call."""
    module: Any = importlib.import_module("mindformers.trainer.base_trainer")
    upstream = module.build_network

    def build_network(*args: Any, **settings: Any) -> Any:
        network = upstream(*args, **settings)
        found = [parameter for parameter in network.get_parameters() if parameter.name in names]
        assert len(found) == len(names), "the names are those of the network's weights"
        for parameter in found:
            parameter.requires_grad = False
        return network

    module.build_network = build_network
