"""Cuts a rank's part out of a larger stored slice on the host, so that only this part is read from the file.

MindSpore maps files into memory, and a part of a tensor is read when it is used. MindFormers cuts a tensor with an
operator of the device, whose input is the whole tensor. This matters if a run continues in a layout with smaller slices
than those of its checkpoint.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np


def slice_on_host() -> None:
    """Make MindFormers' loader cut tensors on the host."""
    module: Any = importlib.import_module("mindformers.checkpoint.reshard")
    module.smart_slice = cut_tensor


def cut_tensor(tensor: Any, slice_ranges: Sequence[tuple[int, int]], load_from_multi_rank: bool = False) -> Any:
    """Return a part of a tensor like MindFormers' `smart_slice`: an array if it is one of several parts.

    Args:
        tensor: A parameter that MindSpore has loaded, or an array.
        slice_ranges: The first and the last index (excluded) of each dimension.
        load_from_multi_rank: Whether the part is combined with parts from other files.

    Raises:
        ValueError: when there is not one range per dimension.
    """
    if len(slice_ranges) != len(tensor.shape):
        raise ValueError(f"{len(slice_ranges)} ranges do not fit a tensor of {len(tensor.shape)} dimensions")
    ranges = [(int(first), int(stop)) for first, stop in slice_ranges]
    if not load_from_multi_rank and ranges == [(0, size) for size in tensor.shape]:
        return tensor
    area = tuple(slice(first, stop) for first, stop in ranges)
    if isinstance(tensor, np.ndarray):  # converted from a Hugging Face file
        return tensor[area]
    part = np.array(tensor.asnumpy()[area], order="C")
    return part if load_from_multi_rank else ms.Tensor.from_numpy(part)
