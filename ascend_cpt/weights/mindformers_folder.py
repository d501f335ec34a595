"""Reads a checkpoint folder in MindFormers' new format, with whole or sliced tensors.

A checkpoint from one process has `*model-*.safetensors` files with whole tensors. A distributed one has a file per rank
and metadata.json (`mindformers.checkpoint.metadata.save_metadata`) with the global shape of every tensor, the grid of
its slices (`axis_fragmentations`), the row-major index of each slice in the grid (called `global_offset`), and the
files that contain each slice. Optimizer states are in `*opt-*` files, which are not read. The sums kept by the routers
of a mixture of experts are skipped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.families import is_router_state
from ascend_cpt.model.tensor_layout import Shape
from ascend_cpt.strict_json import JsonError, check_plain_name, read_json_object, shorten
from ascend_cpt.weights.dtypes import STORAGE, Array
from ascend_cpt.weights.safetensors_file import SafetensorsFile, TensorInfo

METADATA_NAME = "metadata.json"
_MODEL_PATTERN = "*model-*.safetensors"
# As written by MindFormers: Python's text form of (name, (index,)).
_SHARD_ID = re.compile(r"""\((?P<quote>['"])(?P<name>[^'"\\]*)(?P=quote), \((?P<index>\d{1,18}),\)\)""")


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A tensor slice, with its offset, its shape, and the file that contains it."""

    offset: Shape
    shape: Shape
    file: SafetensorsFile


class MindFormersFolder:
    """A model's tensors by name, merged from their slices when read.

    Raises:
        CheckpointError: files are missing or damaged, or slices of a tensor are missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, SafetensorsFile] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._slices: dict[str, list[Slice]] = {}
        if not path.is_dir():
            raise CheckpointError(f"{path}: not a folder")
        if (path / METADATA_NAME).is_file():
            self._open_slices(path / METADATA_NAME)
        else:
            self._open_whole()

    def read(self, name: str) -> Array:
        """Return a whole tensor by name."""
        info, slices = self.tensors[name], self._slices[name]
        if len(slices) == 1:
            return slices[0].file.read(name).reshape(info.shape)
        whole = np.empty(info.shape, STORAGE[info.dtype])
        for part in slices:
            place = tuple(slice(begin, begin + size) for begin, size in zip(part.offset, part.shape, strict=True))
            whole[place] = part.file.read(name)
        return whole

    def _open_whole(self) -> None:
        paths = sorted(self.path.glob(_MODEL_PATTERN))
        if not paths:
            raise CheckpointError(f"{self.path}: no {_MODEL_PATTERN} files; give a MindFormers checkpoint folder")
        for path in paths:
            file = SafetensorsFile(path)
            for name, info in file.tensors.items():
                if is_router_state(name):
                    continue
                if name in self.tensors:
                    raise CheckpointError(
                        f"{self.path}: {name} is in {path.name} and in {self._slices[name][0].file.path.name}, but "
                        f"there is no {METADATA_NAME} that describes the slices; copy it here"
                    )
                self.tensors[name] = info
                self._slices[name] = [Slice(offset=(0,) * len(info.shape), shape=info.shape, file=file)]

    def _open_slices(self, metadata_path: Path) -> None:
        try:
            metadata = read_json_object(metadata_path)
            storage = {read_shard_id(key): places for key, places in metadata["storage_data"].items()}
            for name, entry in metadata["state_dict_metadata"].items():
                if not is_router_state(name):
                    self._add_sliced(name, entry, storage)
        except CheckpointError:
            raise
        except JsonError as error:
            raise CheckpointError(f"{metadata_path}: damaged: {error}") from error
        # Values with unexpected types raise many kinds of errors in the code above.
        except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"{metadata_path}: damaged: {shorten(str(error))}") from error

    def _add_sliced(self, name: str, entry: Mapping[str, Any], storage: Mapping[Any, Any]) -> None:
        """Add a tensor's slices. Tensors in optimizer files are skipped."""
        shape, grid = _read_sizes(entry["global_shape"]), _read_sizes(entry["axis_fragmentations"])
        if entry["layout"]["interleaved_parallel"]:
            raise CheckpointError(f"{self.path}: {name} has an interleaved layout, which is not supported")
        slice_shape = tuple(size // parts for size, parts in zip(shape, grid, strict=True))
        slices: dict[int, Slice] = {}
        for chunk in entry["chunk"]:
            (index,) = chunk["global_offset"]
            file_name = check_plain_name(storage[name, index][0]["file_name"])
            if not Path(file_name).match(_MODEL_PATTERN):
                return
            place = np.unravel_index(index, grid)
            offset = tuple(int(at) * size for at, size in zip(place, slice_shape, strict=True))
            file = self._open(file_name)
            if name not in file.tensors or file.tensors[name].shape != slice_shape:
                raise CheckpointError(f"{file.path}: does not contain {name} with shape {list(slice_shape)}")
            slices[index] = Slice(offset=offset, shape=slice_shape, file=file)
        if len(slices) != math.prod(grid):
            raise CheckpointError(
                f"{self.path}: {METADATA_NAME} lists {len(slices)} slices of {name}, expected a grid of {list(grid)}"
            )
        self._slices[name] = list(slices.values())
        self.tensors[name] = TensorInfo(name=name, dtype=self._slices[name][0].file.tensors[name].dtype, shape=shape)

    def _open(self, file_name: str) -> SafetensorsFile:
        if file_name not in self._files:
            self._files[file_name] = SafetensorsFile(self.path / file_name)
        return self._files[file_name]


def read_shard_id(key: str) -> tuple[str, int]:
    """Return (tensor name, slice index) for a key in `storage_data`."""
    match = _SHARD_ID.fullmatch(key)
    if match is None:
        raise JsonError(f"{shorten(key)} is not the id of a slice")
    return match["name"], int(match["index"])


def _read_sizes(values: Any) -> Shape:
    if not isinstance(values, list) or not all(type(value) is int and 0 < value < 2**63 for value in values):
        raise JsonError("a shape is not a list of sizes")
    return tuple(values)
