"""Loads the weights under the adapters when a run is resumed from a checkpoint, which has only the adapters."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from mindformers.checkpoint.utils import is_hf_checkpoint
from mindspore import nn

from ascend_cpt.errors import CheckpointError


def load_base_first(base: Path) -> None:
    """Make MindFormers' trainer load the weights of `base` before it loads a checkpoint with its optimizer state.

    Call this after `use_own_shards`.
    """
    trainer: Any = importlib.import_module("mindformers.trainer.base_trainer")
    upstream = trainer.load_checkpoint

    def load(checkpoint: str, network: nn.Cell, optimizer: nn.Cell | None = None, **settings: Any) -> None:
        if optimizer is not None:
            options = {key: settings[key] for key in ("balanced_load", "reshard_worker_num") if key in settings}
            if is_hf_checkpoint(str(base)):
                trainer.load_hf_checkpoint(pretrained_model_dir=str(base), network=network, **options)
            else:
                upstream(checkpoint=str(base), network=network, **options)
        upstream(checkpoint=checkpoint, network=network, optimizer=optimizer, **settings)

    trainer.load_checkpoint = load
    _require_base_weights()


def _require_base_weights() -> None:
    """Make MindFormers fail when it loads the base and finds none of its weights, which it would only log.

    On several devices, MindSpore's list of sharded parameters may lack frozen weights, and then nothing is loaded.
    """
    module: Any = importlib.import_module("mindformers.checkpoint.checkpoint")
    upstream = module.load_parameters

    def load_parameters(network: Any, state_dict: Any, optimizer: Any = None, *rest: Any, **settings: Any) -> None:
        frozen = [parameter.name for parameter in network.get_parameters() if not parameter.requires_grad]
        if optimizer is None and frozen and not any(name in state_dict for name in frozen):
            raise CheckpointError(
                "the frozen weights under the adapters were not loaded: MindFormers found none of them in this layout; "
                "train adapters on one device, or with data parallelism on a CPU"
            )
        upstream(network, state_dict, optimizer, *rest, **settings)

    module.load_parameters = load_parameters
