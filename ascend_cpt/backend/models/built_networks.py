"""Changes the networks that MindFormers' trainer builds, before the trainer makes the optimizer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from mindformers.parallel_core.training_graph.base_models.gpt.gpt_model import GPTModel


def change_built_networks(change: Callable[[Any], None]) -> None:
    """Apply `change` to every network built after this call."""
    module: Any = importlib.import_module("mindformers.trainer.base_trainer")
    upstream = module.build_network

    def build_network(*args: Any, **settings: Any) -> Any:
        network = upstream(*args, **settings)
        change(network)
        return network

    module.build_network = build_network


def find_gpt_model(network: Any) -> Any:
    """Return the GPTModel in a network."""
    (model,) = [cell for _, cell in network.cells_and_names() if isinstance(cell, GPTModel)]
    return model
