"""Read and write safetensors files one tensor at a time, including bfloat16.

The format (https://github.com/huggingface/safetensors): the length of the header as an unsigned 64-bit little-endian
number, the header as JSON (name → dtype, shape, data_offsets from the end of the header), the data. The safetensors
package is not used, because it cannot read bfloat16 to NumPy and needs all tensors of a file in memory to write it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ascend_cpt.errors import CheckpointError
from ascend_cpt.model.tensor_layout import Shape
from ascend_cpt.weights.dtypes import STORAGE, Array, get_item_bytes

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Name, dtype and shape of a tensor."""

    name: str
    dtype: str
    shape: Shape

    @property
    def num_elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def size_bytes(self) -> int:
        return self.num_elements * get_item_bytes(self.dtype)


class SafetensorsFile:
    """A file opened for reading, with its header read and checked against the file size.

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
            raise CheckpointError(f"{self.path}: {info.name} is stored as {info.dtype}, only {supported} are supported")
        if size_bytes != info.size_bytes:
            raise CheckpointError(f"{self.path}: {info.name}: {size_bytes} bytes do not match shape {list(info.shape)}")
        self.tensors[info.name] = info

    def read(self, name: str) -> Array:
        """Return a copy of a tensor by name."""
        info = self.tensors[name]
        flat = np.fromfile(self.path, STORAGE[info.dtype], info.num_elements, offset=self._offsets[name])
        return flat.reshape(info.shape)


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
        header = json.loads(text)
        header.pop(_METADATA, None)
        needed_bytes = data_begin
        for entry in header.values():
            begin, end = entry["data_offsets"]
            needed_bytes = max(needed_bytes, data_begin + end)
            if not (isinstance(entry["dtype"], str) and isinstance(end - begin + sum(entry["shape"]), int)):
                raise ValueError("an offset or a dimension is not an integer")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its safetensors header is damaged: download it again") from error
    if needed_bytes > file_bytes:
        raise CheckpointError(f"{path}: truncated: {file_bytes} bytes, expected {needed_bytes}: download it again")
    return header, data_begin


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


def sync_file(path: Path) -> None:
    """Flush the content of a file to the disk.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
