"""Reads the shapes and dtypes of a folder without metadata.json from its safetensors headers.

To get them, MindFormers loads every file in full on every rank before it loads the tensors that the rank needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
from mindformers.checkpoint.sharded_tensor import build_sharded_tensor
from mindformers.checkpoint.utils import get_needed_hf_files, get_sharded_tensor_shard_id, is_hf_checkpoint

from ascend_cpt.errors import CheckpointError
from ascend_cpt.weights.mindformers_folder import METADATA_NAME
from ascend_cpt.weights.safetensors_file import read_header
from ascend_cpt.weights.shard_map import check_shard_map

# Dtype name in a safetensors header → the MindSpore dtype that `mindspore.load_checkpoint` uses.
_DTYPES = {
    "F64": ms.float64,
    "F32": ms.float32,
    "F16": ms.float16,
    "BF16": ms.bfloat16,
    "I64": ms.int64,
    "I32": ms.int32,
    "I16": ms.int16,
    "I8": ms.int8,
    "U64": ms.uint64,
    "U32": ms.uint32,
    "U16": ms.uint16,
    "U8": ms.uint8,
    "BOOL": ms.bool_,
}


def read_metadata_from_headers(checkpoint_dir: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the same result as MindFormers' `generate_default_metadata_from_checkpoint`, without reading tensor data.

    Args:
        checkpoint_dir: A Hugging Face folder, or a MindFormers folder that one process wrote.

    Returns:
        Each parameter's single `ShardedTensor` in a list, by name; and the list of files holding each shard, by id.

    Raises:
        CheckpointError: when the folder has no safetensors files, or one is missing, damaged or of an unknown
            dtype, or a tensor is in two files.
    """
    folder = Path(checkpoint_dir)
    if is_hf_checkpoint(checkpoint_dir):
        paths = sorted(Path(name) for name in get_needed_hf_files(checkpoint_dir))
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise CheckpointError(f"{folder}: contains no safetensors files: give the folder of a model or a checkpoint")
    tensors: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for path in paths:
        for name, entry in read_header(path)[0].items():
            shard_id = get_sharded_tensor_shard_id(name, (0,))
            if name in tensors:
                raise CheckpointError(f"{path}: {name} is also in {files[shard_id][0]['file_name']}: remove one")
            if entry["dtype"] not in _DTYPES:
                raise CheckpointError(f"{path}: {name} is stored as {entry['dtype']}, which MindSpore cannot load")
            shape = tuple(entry["shape"])
            tensors[name] = [
                build_sharded_tensor(
                    param_name=name,
                    param_dtype=_DTYPES[entry["dtype"]],
                    local_shape=shape,
                    global_shape=shape,
                    axis_fragmentations=[1] * len(shape),
                )
            ]
            files[shard_id] = [{"file_name": path.name, "storage_rank": 0, "rank_group": [0]}]
    return tensors, files


def use_headers() -> None:
    """Make MindFormers' loaders read shapes from file headers in folders without metadata.json."""
    metadata: Any = importlib.import_module("mindformers.checkpoint.metadata")
    metadata.generate_default_metadata_from_checkpoint = read_metadata_from_headers


def use_checked_shard_maps() -> None:
    """Make MindFormers' loader check metadata.json in `verify_ckpt_valid`, which it calls before reading anything.

    Call this after `use_own_shards`.
    """
    module: Any = importlib.import_module("mindformers.checkpoint.checkpoint")
    upstream: Callable[[str], None] = module.verify_ckpt_valid

    def verify(checkpoint_dir: str) -> None:
        path = Path(checkpoint_dir) / METADATA_NAME
        if path.is_file():
            check_shard_map(path)
        upstream(checkpoint_dir)

    module.verify_ckpt_valid = verify
