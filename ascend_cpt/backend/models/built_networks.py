"""Changes the networks that MindFormers' trainer builds, before the trainer makes the optimizer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def change_built_networks(change: Callable[[Any], None]) -> None:
    """Apply `change` to every network built after this call."""
    module: Any = importlib.import_module("mindformers.trainer.base_trainer")
    upstream = module.build_network

    def build_network(*args: Any, **settings: Any) -> Any:
        network = upstream(*args, **settings)
        change(network)
        return network

    module.build_network = build_network
