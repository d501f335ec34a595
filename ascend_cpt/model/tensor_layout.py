"""Joins Hugging Face tensors into MindFormers tensors and splits them again, using only NumPy. Dtypes do not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ascend_cpt.model.sizes import ModelSizes

Array = NDArray[Any]
Shape = tuple[int, ...]


class TensorLayout(Protocol):
    """Joins a group's Hugging Face tensors into a MindFormers tensor. `split` is the exact inverse of `join`."""

    def join_shapes(self, parts: Sequence[Shape]) -> Shape: ...

    def join(self, parts: Sequence[Array], sizes: ModelSizes) -> Array: ...

    def split(self, whole: Array, sizes: ModelSizes) -> list[Array]: ...


class _JoinsRows:
    """A layout whose tensor has the rows of all parts."""

    def join_shapes(self, parts: Sequence[Shape]) -> Shape:
        return (sum(part[0] for part in parts), *parts[0][1:])


@dataclass(frozen=True)
class Unchanged(_JoinsRows):
    """One tensor with a different name."""

    def join(self, parts: Sequence[Array], sizes: ModelSizes) -> Array:
        (part,) = parts
        return part

    def split(self, whole: Array, sizes: ModelSizes) -> list[Array]:
        return [whole]


@dataclass(frozen=True)
class GroupedQkv(_JoinsRows):
    """Query, key and value rows, grouped by key-value head: query heads of the group, key head, value head."""

    def join(self, parts: Sequence[Array], sizes: ModelSizes) -> Array:
        by_head = [part.reshape(sizes.num_kv_heads, -1, *part.shape[1:]) for part in parts]
        joined: Array = np.concatenate(by_head, axis=1)
        return joined.reshape(-1, *joined.shape[2:])

    def split(self, whole: Array, sizes: ModelSizes) -> list[Array]:
        by_head = whole.reshape(sizes.num_kv_heads, -1, *whole.shape[1:])
        num_query_rows = sizes.num_heads // sizes.num_kv_heads * sizes.head_dim
        parts = np.split(by_head, [num_query_rows, num_query_rows + sizes.head_dim], axis=1)
        return [part.reshape(-1, *part.shape[2:]) for part in parts]


@dataclass(frozen=True)
class InterleavedRows(_JoinsRows):
    """Alternating rows of two tensors: gate row 0, up row 0, gate row 1, up row 1, …"""

    def join(self, parts: Sequence[Array], sizes: ModelSizes) -> Array:
        joined: Array = np.stack(parts, axis=1)
        return joined.reshape(-1, *joined.shape[2:])

    def split(self, whole: Array, sizes: ModelSizes) -> list[Array]:
        return [np.ascontiguousarray(whole[0::2]), np.ascontiguousarray(whole[1::2])]


@dataclass(frozen=True)
class StackedExperts:
    """One block of rows per expert: its transposed tensors side by side. The parts are in expert order."""

    num_per_expert: int

    def join_shapes(self, parts: Sequence[Shape]) -> Shape:
        (num_rows, num_columns), num_experts = parts[0], len(parts) // self.num_per_expert
        return num_experts * num_columns, self.num_per_expert * num_rows

    def join(self, parts: Sequence[Array], sizes: ModelSizes) -> Array:
        num_rows, num_columns = parts[0].shape
        joined = np.empty((*self.join_shapes([part.shape for part in parts]),), parts[0].dtype)
        blocks = joined.reshape(-1, num_columns, self.num_per_expert, num_rows)
        for index, part in enumerate(parts):
            blocks[index // self.num_per_expert, :, index % self.num_per_expert] = part.T
        return joined

    def split(self, whole: Array, sizes: ModelSizes) -> list[Array]:
        assert sizes.experts is not None
        experts = whole.reshape(
            sizes.experts.num_experts, -1, self.num_per_expert, whole.shape[1] // self.num_per_expert
        )
        return [np.ascontiguousarray(expert[:, place].T) for expert in experts for place in range(self.num_per_expert)]
