"""Checkpoints without shared storage: each rank loads the shards that it saved on its own node.

A folder with the files of all nodes (see tools/gather_checkpoint.py) can be loaded by MindFormers in any layout.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
from mindformers.checkpoint.checkpoint import load_parameters
from mindspore import nn

from ascend_cpt.backend.checkpointing.shard_files import name_files
from ascend_cpt.checkpoint.locate import find_missing_ranks
from ascend_cpt.errors import CheckpointError


def load_own_shards(
    folder: Path, network: nn.Cell, optimizer: nn.Cell | None, *, prefix: str, rank: int, num_ranks: int
) -> None:
    """Load this rank's shards from the files named by `name_files`, or only the weights if there is no optimizer.

    Raises:
        CheckpointError: when this rank's shards are not on this node.
    """
    model_file, optimizer_file = name_files(folder, prefix, rank, num_ranks)
    wanted = [model_file] if optimizer is None else [model_file, optimizer_file]
    for path in wanted:
        if not path.is_file():
            raise CheckpointError(
                f"{path}: not found on this node; without shared storage a run must resume with the same layout and "
                "node ranks. To change them, gather the nodes' files with tools/gather_checkpoint.py and copy the "
                "folder to every node"
            )
    parameters: dict[str, Any] = {}
    for path in wanted:
        parameters.update(ms.load_checkpoint(str(path), format="safetensors"))
    load_parameters(network, parameters, optimizer)


def use_own_shards(prefix: str, rank: int, num_ranks: int) -> None:
    """Make MindFormers' trainer load only this rank's shards from folders that lack other ranks' shards."""
    trainer: Any = importlib.import_module("mindformers.trainer.base_trainer")
    checkpoint_module: Any = importlib.import_module("mindformers.checkpoint.checkpoint")
    upstream_load: Callable[..., None] = trainer.load_checkpoint
    upstream_verify: Callable[[str], None] = checkpoint_module.verify_ckpt_valid

    def load(checkpoint: str, network: nn.Cell, optimizer: nn.Cell | None = None, **settings: Any) -> None:
        folder = Path(checkpoint)
        if has_all_shards(folder):
            upstream_load(checkpoint=checkpoint, network=network, optimizer=optimizer, **settings)
        else:
            load_own_shards(folder, network, optimizer, prefix=prefix, rank=rank, num_ranks=num_ranks)

    def verify(checkpoint_dir: str) -> None:
        # Upstream requires every file listed in metadata.json, including other nodes' files.
        if has_all_shards(Path(checkpoint_dir)):
            upstream_verify(checkpoint_dir)

    trainer.load_checkpoint = load
    checkpoint_module.verify_ckpt_valid = verify


def has_all_shards(folder: Path) -> bool:
    """Return whether a folder has all ranks' model shards, which is always true if one process saved it."""
    return not find_missing_ranks(path.name for path in folder.iterdir())[1]
