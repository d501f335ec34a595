"""Checkpoints on disks that nodes do not share: every rank saves its shards on its node and loads them from there.

MindFormers refuses to save its new format without shared storage. The files here have its names and content: a folder
into which all nodes' files were gathered (tools/gather_checkpoint.py) is one that MindFormers loads in any layout.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
from mindformers.checkpoint.checkpoint import CommonInfo, load_parameters
from mindformers.checkpoint.metadata import get_total_params_file_mapping_info, save_metadata
from mindformers.checkpoint.utils import FileType, get_checkpoint_name
from mindspore import nn

from ascend_cpt.errors import CheckpointError


def save_own_shards(
    folder: Path,
    network: nn.Cell,
    optimizer: nn.Cell,
    *,
    prefix: str,
    rank: int,
    num_ranks: int,
    background: bool = False,
) -> None:
    """Save what this rank holds of the model and of the optimizer into `folder`, which must exist.

    With `background` the files are there some time after the return.
    """
    model_names = set(network.parameters_dict())
    model_file, optimizer_file = name_files(folder, prefix, rank, num_ranks)
    how = {"integrated_save": False, "format": "safetensors", "async_save": background}
    ms.save_checkpoint(network, str(model_file.with_suffix("")), **how)
    ms.save_checkpoint(
        optimizer, str(optimizer_file.with_suffix("")), choice_func=lambda name: name not in model_names, **how
    )


def save_common_files(folder: Path, network: nn.Cell, common: CommonInfo, sharded_tensors: Any, *, prefix: str) -> None:
    """Save what is the same for all ranks, once per node: `common.json` and the map of all ranks' shards."""
    common.save_common(str(folder / "common.json"))
    if sharded_tensors is not None:
        names = network.parameters_dict().keys()
        files = get_total_params_file_mapping_info(sharded_tensors, prefix, names)
        save_metadata(sharded_tensors, files, str(folder / "metadata.json"))


def load_own_shards(
    folder: Path, network: nn.Cell, optimizer: nn.Cell | None, *, prefix: str, rank: int, num_ranks: int
) -> None:
    """Load what `save_own_shards` saved for this rank; without an optimizer the weights alone.

    Raises:
        CheckpointError: when this node holds no shards of this rank.
    """
    model_file, optimizer_file = name_files(folder, prefix, rank, num_ranks)
    wanted = [model_file] if optimizer is None else [model_file, optimizer_file]
    for path in wanted:
        if not path.is_file():
            raise CheckpointError(
                f"{path}: this node holds no such shard; without shared storage a run goes on with the layout and the "
                "node ranks that it was saved with. To change them gather the nodes' files with "
                "tools/gather_checkpoint.py and copy the folder to every node"
            )
    parameters: dict[str, Any] = {}
    for path in wanted:
        parameters.update(ms.load_checkpoint(str(path), format="safetensors"))
    load_parameters(network, parameters, optimizer)


def use_own_shards(prefix: str, rank: int, num_ranks: int) -> None:
    """Let MindFormers' trainer load each rank's own shards where a checkpoint folder holds only some of all shards."""
    trainer: Any = importlib.import_module("mindformers.trainer.base_trainer")
    load_everything: Callable[..., None] = trainer.load_checkpoint

    def load(checkpoint: str, network: nn.Cell, optimizer: nn.Cell | None = None, **settings: Any) -> None:
        folder = Path(checkpoint)
        num_files = len(list(folder.glob(f"{prefix}-model-*.safetensors")))
        if num_files == num_ranks:
            load_everything(checkpoint=checkpoint, network=network, optimizer=optimizer, **settings)
        else:
            load_own_shards(folder, network, optimizer, prefix=prefix, rank=rank, num_ranks=num_ranks)

    trainer.load_checkpoint = load


def name_files(folder: Path, prefix: str, rank: int, num_ranks: int) -> tuple[Path, Path]:
    """Return the files of a rank's part of the model and of the optimizer."""
    names = [
        get_checkpoint_name(str(folder), prefix, rank, num_ranks, kind) for kind in (FileType.MODEL, FileType.OPTIMIZER)
    ]
    return Path(f"{names[0]}.safetensors"), Path(f"{names[1]}.safetensors")
