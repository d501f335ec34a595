"""Loads the weights under the adapters when a run is resumed from a checkpoint, which has only the adapters."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from mindformers.checkpoint.utils import is_hf_checkpoint
from mindspore import nn


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
