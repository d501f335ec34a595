"""Checkpoint number formats. NumPy has no bfloat16, so such tensors are stored as uint16 bit patterns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.errors import CheckpointError

Array = NDArray[Any]

# Name in a safetensors header → NumPy array type.
STORAGE: dict[str, type[np.generic]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
}
# Name in config.json and on the command line → name in a safetensors header.
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def get_item_bytes(dtype: str) -> int:
    """Return the size of one number in bytes."""
    return np.dtype(STORAGE[dtype]).itemsize


def cast(tensor: Array, source: str, target: str, name: str) -> Array:
    """Convert `tensor` from format `source` to `target`, rounding to nearest (ties to even).

    Raises:
        CheckpointError: a finite value of the tensor `name` is outside the range of `target`.
    """
    if source == target:
        return tensor
    wide = _bfloat16_to_float32(tensor) if source == "BF16" else tensor
    if target == "BF16":
        narrow = _float32_to_bfloat16(wide.astype(np.float32, copy=False))
        became_infinite = np.isinf(_bfloat16_to_float32(narrow)) & ~np.isinf(wide)
    else:
        with np.errstate(over="ignore"):
            narrow = wide.astype(STORAGE[target])
        became_infinite = np.isinf(narrow) & ~np.isinf(wide)
    if became_infinite.any():
        value = float(wide[became_infinite].flat[0])
        raise CheckpointError(f"{name}: value {value:g} is outside the range of {target}: choose another --dtype")
    return narrow


def to_float32(tensor: Array, dtype: str) -> NDArray[np.float32]:
    """Return a tensor of any format as float32."""
    wide = _bfloat16_to_float32(tensor) if dtype == "BF16" else tensor
    return wide.astype(np.float32, copy=False)


def _bfloat16_to_float32(bits: Array) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _float32_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    # Round to nearest, ties to even: add half a unit, or just below it if the kept part is even.
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    # The addition can overflow a NaN's mantissa, so keep the upper bits and set the quiet bit.
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
