"""Freezes weights in networks built by MindFormers' trainer, before the trainer makes the optimizer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ascend_cpt.backend.models.built_networks import change_built_networks


def freeze_weights(names: Collection[str]) -> None:
    """Freeze the weights with these names in networks built after this call."""

    def freeze(network: Any) -> None:
        found = [parameter for parameter in network.get_parameters() if parameter.name in names]
        assert len(found) == len(names), "the names are those of the network's weights"
        for parameter in found:
            parameter.requires_grad = False

    change_built_networks(freeze)
