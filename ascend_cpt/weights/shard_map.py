"""Checks a checkpoint's metadata.json before MindFormers' loader, which checks nothing, reads it.

The file may have come with a checkpoint from elsewhere. Its shapes, ranks and names decide what the loader allocates
and which files it opens.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeGuard

from ascend_cpt.errors import CheckpointError
from ascend_cpt.strict_json import JsonError, check_plain_name, read_json_object, shorten
from ascend_cpt.weights.mindformers_folder import read_shard_id

_MAX_DIMENSIONS = 32
_MAX_RANKS = 1 << 24
# MindFormers takes the values in this order, not by name.
_LAYOUT_KEYS = ["device_matrix", "tensor_map", "interleaved_parallel", "alias_name", "rank_list"]


def check_shard_map(path: Path) -> None:
    """Check the structure, sizes, ranks and file names in a metadata.json.

    Raises:
        CheckpointError: the file cannot be read or is damaged.
    """
    try:
        metadata = read_json_object(path)
        tensors, storage = metadata.get("state_dict_metadata"), metadata.get("storage_data")
        if not isinstance(tensors, dict) or not isinstance(storage, dict):
            raise JsonError("has no state_dict_metadata or storage_data")
        known: dict[str, None] = {}
        for key, places in storage.items():
            name, _ = read_shard_id(key)
            known[name] = None
            _check_places(places, key)
        for name, entry in tensors.items():
            if name not in known:
                raise JsonError(f"storage_data: has no file with {shorten(name)}")
            _check_tensor(entry, shorten(name))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    except JsonError as error:
        raise CheckpointError(f"{path}: damaged: {error}; copy it again, or choose another step") from error


def _check_places(places: Any, key: str) -> None:
    if not isinstance(places, list) or not places:
        raise JsonError(f"storage_data[{shorten(key)}]: is not a list of files")
    for place in places:
        if not isinstance(place, dict):
            raise JsonError(f"storage_data[{shorten(key)}]: is not a list of files")
        check_plain_name(place.get("file_name"))
        if not _are_ranks([place.get("storage_rank")]) or not _are_ranks(place.get("rank_group", [])):
            raise JsonError(f"storage_data[{shorten(key)}]: a rank is not a number below {_MAX_RANKS}")


def _check_tensor(entry: Any, name: str) -> None:
    if not isinstance(entry, dict):
        raise JsonError(f"{name}: is not an object")
    properties = entry.get("properties")
    if not isinstance(properties, dict) or not isinstance(properties.get("dtype"), str):
        raise JsonError(f"{name}: properties: no dtype")
    shape, grid = entry.get("global_shape"), entry.get("axis_fragmentations")
    if not _are_sizes(shape) or not _are_sizes(grid) or len(shape) != len(grid):
        raise JsonError(f"{name}: global_shape and axis_fragmentations are not two lists of equal length")
    if any(size % parts for size, parts in zip(shape, grid, strict=True)):
        raise JsonError(f"{name}: global_shape is not a multiple of axis_fragmentations")
    _check_layout(entry.get("layout"), name)
    chunks, local_shape = entry.get("chunk"), [size // parts for size, parts in zip(shape, grid, strict=True)]
    num_slices = math.prod(grid)
    if not isinstance(chunks, list) or not 0 < len(chunks) <= num_slices:
        raise JsonError(f"{name}: chunk is not a list of at most {num_slices} slices")
    for chunk in chunks:
        offset = chunk.get("global_offset") if isinstance(chunk, dict) else None
        if not isinstance(offset, list) or len(offset) != 1 or not _is_whole(offset[0], num_slices):
            raise JsonError(f"{name}: the global_offset of a slice is not one number below {num_slices}")
        if chunk.get("local_shape") != local_shape:
            raise JsonError(f"{name}: the local_shape of a slice is not {local_shape}")


def _check_layout(layout: Any, name: str) -> None:
    if not isinstance(layout, dict) or list(layout) != _LAYOUT_KEYS:
        raise JsonError(f"{name}: layout does not have the values {', '.join(_LAYOUT_KEYS)} in this order")
    devices, aliases, ranks = layout["device_matrix"], layout["alias_name"], layout["rank_list"]
    if not _are_sizes(devices) or math.prod(devices) > _MAX_RANKS:
        raise JsonError(f"{name}: layout: device_matrix is not a list of sizes")
    if not isinstance(aliases, list) or len(aliases) != len(devices) or not all(map(_is_name, aliases)):
        raise JsonError(f"{name}: layout: alias_name is not a list of as many names as device_matrix")
    if not _are_ranks(ranks) or len(ranks) != math.prod(devices):
        raise JsonError(f"{name}: layout: rank_list is not a list of as many ranks as device_matrix")
    if type(layout["interleaved_parallel"]) is not bool or not _is_tensor_map(layout["tensor_map"], len(devices)):
        raise JsonError(f"{name}: layout: tensor_map or interleaved_parallel is not valid")


def _is_tensor_map(axes: Any, num_axes: int) -> bool:
    """Return, for each dimension, its device axis, a list of axes, or -1 if it has none."""
    if not isinstance(axes, list) or len(axes) > _MAX_DIMENSIONS:
        return False
    flat = [axis for item in axes for axis in (item if isinstance(item, list) else [item])]
    return all(type(axis) is int and -1 <= axis < num_axes for axis in flat)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 100


def _is_whole(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(values, list)
        and len(values) <= _MAX_DIMENSIONS
        and all(type(value) is int and 0 < value < 2**48 for value in values)
    )


def _are_ranks(values: Any) -> bool:
    return isinstance(values, list) and all(_is_whole(value, _MAX_RANKS) for value in values)
