"""Refuses to resume from a checkpoint that lacks optimizer state for any trained weight.

MindFormers only logs missing optimizer parameters at level INFO and continues with zeros.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any

from ascend_cpt.errors import CheckpointError


def require_optimizer_state() -> None:
    """Make MindFormers fail when it loads weights with an optimizer and optimizer state is missing."""
    module: Any = importlib.import_module("mindformers.checkpoint.checkpoint")
    upstream = module.load_parameters

    def load_parameters(network: Any, state_dict: Any, optimizer: Any = None, *rest: Any, **settings: Any) -> None:
        if optimizer is not None:
            trained = [parameter.name for parameter in network.trainable_params()]
            check_optimizer_state(optimizer.parameters_dict(), trained, state_dict)
        upstream(network, state_dict, optimizer, *rest, **settings)

    module.load_parameters = load_parameters


def check_optimizer_state(optimizer: Collection[str], trained: Collection[str], loaded: Collection[str]) -> None:
    """Check that the optimizer state of every trained weight was loaded.

    Args:
        optimizer: Names of the optimizer's parameters. A weight's state is named `<kind>.<weight>`.
        trained: Names of the trained weights.
        loaded: Names of the parameters that were read from the checkpoint.

    Raises:
        CheckpointError: when the state of a trained weight is missing.
    """
    # With pipeline stages, the network still has every stage's weights here, but a rank reads only its own stage's.
    weights = {name for name in trained if name in loaded}
    names = (name for name in optimizer if name not in weights and not name.startswith("accu_grads."))
    states = [name for name in names if name.partition(".")[2] in weights]
    missing = [name for name in states if name not in loaded]
    if missing:
        raise CheckpointError(
            f"the checkpoint has no optimizer state for {len(missing)} of {len(states)} entries, for example "
            f"{missing[0]}: resume from an older checkpoint (delete the folder of this one), or start a new run from "
            "its weights with init_from"
        )
