"""Compares two checkpoints bit by bit and reports the result by kind of tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ascend_cpt.model.parameters import list_hf_shapes
from ascend_cpt.weights.dtypes import Array, to_float32
from ascend_cpt.weights.hf_folder import HfFolder
from ascend_cpt.weights.mapping import check_mindformers_names, iterate_to_hf, iterate_to_mindformers
from ascend_cpt.weights.sources import TensorSource


@dataclass(frozen=True, kw_only=True)
class KindReport:
    """The comparison of one kind of tensor over all layers."""

    kind: str
    num_tensors: int
    num_equal: int
    max_difference: float
    """Largest absolute difference; infinite if dtypes or shapes differ or a value is NaN."""


def compare_folders(folder: HfFolder, other: TensorSource) -> list[KindReport]:
    """Compare a Hugging Face folder with another one or with a MindFormers checkpoint of the same model.

    Peak memory: the tensors of one group.

    Raises:
        CheckpointError: either one does not contain exactly the tensors described by the folder's config.json.
    """
    folder.check()
    if isinstance(other, HfFolder):
        other.check()
        return _compare(folder, ((name, other.read(name)) for name in list_hf_shapes(folder.sizes)))
    check_mindformers_names(other.tensors, folder.sizes)
    return _compare(folder, iterate_to_hf(folder.sizes, other.read))


def compare_round_trip(folder: HfFolder) -> list[KindReport]:
    """Compare a Hugging Face folder with itself after conversion to MindFormers and back in memory.

    Raises:
        CheckpointError: the folder does not contain exactly the tensors described by its config.json.
    """
    folder.check()

    converted = iterate_to_mindformers(folder.sizes, folder.read)

    def read(name: str) -> Array:
        converted_name, tensor = next(converted)
        assert converted_name == name, "both directions use the same order of groups"
        return tensor

    return _compare(folder, iterate_to_hf(folder.sizes, read))


def _compare(folder: HfFolder, tensors: Iterable[tuple[str, Array]]) -> list[KindReport]:
    differences: dict[str, list[float]] = {}
    for name, tensor in tensors:
        kind = re.sub(r"^model\.|layers\.\d+\.|\.weight$|(?<=experts\.)\d+\.", "", name)
        expected = folder.read(name)
        differences.setdefault(kind, []).append(_measure(expected, tensor, folder.tensors[name].dtype))
    return [
        KindReport(kind=kind, num_tensors=len(found), num_equal=found.count(0.0), max_difference=max(found))
        for kind, found in differences.items()
    ]


def _measure(expected: Array, tensor: Array, dtype: str) -> float:
    if expected.dtype != tensor.dtype or expected.shape != tensor.shape:
        return float("inf")
    if expected.tobytes() == tensor.tobytes():
        return 0.0
    difference = np.abs(to_float32(expected, dtype) - to_float32(tensor, dtype)).max()
    # Bits can differ even if values are equal (0 and -0), which counts as a difference.
    return float(difference) or float(np.finfo(np.float32).tiny) if np.isfinite(difference) else float("inf")
