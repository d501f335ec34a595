"""Reads and writes safetensors files one tensor at a time, including bfloat16.

A file (https://github.com/huggingface/safetensors) has the header length as an unsigned 64-bit little-endian number,
the header as JSON (name → dtype, shape, data_offsets from the end of the header), and the data. The safetensors
package is not used, because it cannot read bfloat16 into NumPy and needs all of a file's tensors in memory to write it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.tensor_layout import Shape
from ascend_cpt.strict_json import JsonError, parse_json, shorten
from ascend_cpt.weights.dtypes import STORAGE, Array, get_item_bytes

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 32  # NumPy's limit
_METADATA = "__metadata__"


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Name, dtype and shape of a tensor."""

    name: str
    dtype: str
    shape: Shape

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)  # with Python integers, since NumPy's would overflow for an absurd shape

    @property
    def size_bytes(self) -> int:
        return self.num_elements * get_item_bytes(self.dtype)


class SafetensorsFile:
    """A file opened for reading. Its header has been read and checked against the file size.

    Raises:
        CheckpointError: the file is missing, truncated, damaged or has an unsupported number format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        self._read_header()

    def _read_header(self) -> None:
        header, data_begin = read_header(self.path)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            self._add(TensorInfo(name=name, dtype=entry["dtype"], shape=tuple(entry["shape"])), end - begin)
            self._offsets[name] = data_begin + begin

    def _add(self, info: TensorInfo, size_bytes: int) -> None:
        if info.dtype not in STORAGE:
            supported = ", ".join(STORAGE)
            raise CheckpointError(
                f"{self.path}: {info.name} is stored as {info.dtype}, but only {supported} are supported"
            )
        if size_bytes != info.size_bytes:
            raise CheckpointError(f"{self.path}: {info.name}: {size_bytes} bytes do not match shape {list(info.shape)}")
        self.tensors[info.name] = info

    def read(self, name: str) -> Array:
        """Return a copy of a tensor by name."""
        info = self.tensors[name]
        return self.read_part(name, 0, info.num_elements).reshape(info.shape)

    def read_part(self, name: str, first: int, stop: int) -> Array:
        """Return a copy of the elements `first` to `stop` of a tensor, in the order of storage."""
        info = self.tensors[name]
        offset = self._offsets[name] + first * get_item_bytes(info.dtype)
        flat = np.fromfile(self.path, STORAGE[info.dtype], stop - first, offset=offset)
        if flat.size != stop - first:
            raise CheckpointError(f"{self.path}: was truncated while it was being read; copy it again")
        return flat


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a file (name → dtype, shape, data_offsets) and the offset of its data in bytes.

    Every number format is accepted.

    Raises:
        CheckpointError: the file is missing, truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            file_bytes = path.stat().st_size
            header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            data_begin = _LENGTH_BYTES + header_bytes
            if not 0 < header_bytes <= _MAX_HEADER_BYTES or data_begin > file_bytes:
                raise CheckpointError(
                    f"{path}: not a safetensors file, or truncated ({file_bytes} bytes): download it again"
                )
            text = file.read(header_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        header = parse_json(text)
        if not isinstance(header, dict):
            raise JsonError("is not a JSON object")
        header.pop(_METADATA, None)
        needed_bytes = data_begin + _check_entries(header)
    except JsonError as error:
        raise CheckpointError(f"{path}: its safetensors header is damaged ({error}): download it again") from error
    if needed_bytes > file_bytes:
        raise CheckpointError(f"{path}: truncated: {file_bytes} bytes, expected {needed_bytes}: download it again")
    return header, data_begin


def _check_entries(header: Mapping[str, Any]) -> int:
    """Check a header's entries and return how many bytes of data they need.

    Raises:
        JsonError: an entry is malformed, or two tensors' data overlap.
    """
    places: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        where = shorten(name)
        if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
            raise JsonError(f"{where}: no dtype")
        shape, offsets = entry.get("shape"), entry.get("data_offsets")
        if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
            raise JsonError(f"{where}: its shape is not a list of at most {_MAX_DIMENSIONS} sizes")
        if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise JsonError(f"{where}: its data_offsets are not two increasing offsets in the file")
        places.append((offsets[0], offsets[1], where))
    places.sort()
    for (_, end, before), (begin, _, after) in pairwise(places):
        if begin < end:
            raise JsonError(f"the data of {before} and {after} overlap")
    return max((end for _, end, _ in places), default=0)


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def write_file(path: Path, infos: Sequence[TensorInfo], tensors: Iterable[tuple[str, Array]]) -> None:
    """Write a file with the tensors described by `infos`, consuming them one at a time in that order.

    Raises:
        OSError: the file cannot be written.
    """
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    begin = 0
    for info in infos:
        end = begin + info.size_bytes
        header[info.name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    expected = iter(infos)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name, tensor in tensors:
            info = next(expected)
            assert (name, tensor.shape) == (info.name, info.shape), (name, info)
            assert tensor.dtype == np.dtype(STORAGE[info.dtype]), (name, info)
            np.ascontiguousarray(tensor).tofile(file)
        assert next(expected, None) is None
