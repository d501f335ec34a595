"""Writes a rank's parameters to its two files, model and optimizer, in MindFormers' new format.

The files have the names and bytes that MindFormers would write. MindFormers' own functions are not used, because they
cannot save without shared storage, and because in the background they copy every tensor twice and let training wait
until the model file is written.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from mindformers.checkpoint.utils import FileType, get_checkpoint_name
from mindspore import nn
from mindspore.train import serialization
from safetensors.numpy import save_file

from ascend_cpt.checkpoint.checksums import checksum_file
from ascend_cpt.files import write_whole

Arrays = dict[str, np.ndarray]


def name_files(folder: Path, prefix: str, rank: int, num_ranks: int) -> tuple[Path, Path]:
    """Return the paths of a rank's model shard and optimizer shard."""
    names = [
        get_checkpoint_name(str(folder), prefix, rank, num_ranks, kind) for kind in (FileType.MODEL, FileType.OPTIMIZER)
    ]
    return Path(f"{names[0]}.safetensors"), Path(f"{names[1]}.safetensors")


def read_shards(
    network: nn.Cell, optimizer: nn.Cell, saved_weights: Collection[str] | None = None
) -> tuple[Arrays, Arrays]:
    """Return this rank's shards of the model (all weights, or `saved_weights`) and of the optimizer, by parameter name.

    On a CPU, the arrays share the parameters' memory. On Ascend, they are copies. All ranks must call this, because
    parameters shared by pipeline stages are synchronized first.
    """
    model_names = set(network.parameters_dict())
    choose = None if saved_weights is None else saved_weights.__contains__
    return _read(network, choose), _read(optimizer, lambda name: name not in model_names)


def _read(cell: nn.Cell, choose: Callable[[str], bool] | None) -> Arrays:
    # The function with which `mindspore.save_checkpoint` chooses parameters. False: without gathering shards.
    entries = serialization._convert_save_obj_to_param_list(cell, False, None, choose)
    return {entry["name"]: entry["data"].asnumpy() for entry in entries}


def write_shards(files: Sequence[Path], shards: Sequence[Mapping[str, np.ndarray]]) -> dict[str, str]:
    """Write the files, flush them to disk and return their checksums by name.

    The checksums are computed from the files, which are read from the page cache.

    Raises:
        OSError, SafetensorError: when a file cannot be written.
    """
    for path, arrays in zip(files, shards, strict=True):
        with write_whole(path) as temporary:
            save_file(dict(arrays), str(temporary), metadata={"format": "ms"} if arrays else None)
        path.chmod(stat.S_IRUSR)  # like MindSpore
    return {path.name: checksum_file(path) for path in files}
