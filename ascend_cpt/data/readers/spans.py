"""Splits the input into n contiguous shards of about equal weight, without copying text."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ascend_cpt.data.readers.formats import Extent
from ascend_cpt.data.readers.input_files import InputFile


@dataclass(frozen=True, kw_only=True)
class Span:
    """The records in a file that start at `start` or later but before `stop`."""

    file: InputFile
    start: int
    stop: int
    weight: int
    """Approximate size in bytes, for progress."""


def split_input(files: Sequence[InputFile], extents: Sequence[Sequence[Extent]], num_shards: int) -> list[list[Span]]:
    """Return the spans for each of the `num_shards` shards. `extents[k]` are the extents of `files[k]`.

    Shard k gets the positions between k / n and (k + 1) / n of the total weight. Shards may be empty if there are more
    shards than positions. Each position is in exactly one span, and spans are in order.
    """
    assert num_shards >= 1 and len(files) == len(extents)
    located_extents = [(k, extent) for k, file_extents in enumerate(extents) for extent in file_extents]
    ends = list(itertools.accumulate(extent.weight for _, extent in located_extents))
    total_weight = ends[-1] if ends else 0
    first_positions = _first_positions(located_extents)

    def locate(weight: int) -> tuple[int, int]:
        """Return the (file, position) at which the cumulative weight reaches `weight`."""
        k = bisect.bisect_right(ends, weight)
        if k == len(located_extents):
            return len(files), 0
        file_number, extent = located_extents[k]
        inside = weight - (ends[k] - extent.weight)
        return file_number, first_positions[k] + extent.num_positions * inside // extent.weight

    cuts = [locate(total_weight * k // num_shards) for k in range(num_shards)] + [(len(files), 0)]
    sizes = [sum(extent.num_positions for extent in file_extents) for file_extents in extents]
    weights = [sum(extent.weight for extent in file_extents) for file_extents in extents]
    return [
        [
            Span(file=files[k], start=start, stop=stop, weight=weights[k] * (stop - start) // sizes[k])
            for k, start, stop in _between(cuts[shard], cuts[shard + 1], sizes)
            if start < stop
        ]
        for shard in range(num_shards)
    ]


def _between(begin: tuple[int, int], end: tuple[int, int], sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the (file, start, stop) parts between two cuts."""
    last = min(end[0], len(sizes) - 1)
    return [
        (k, begin[1] if k == begin[0] else 0, end[1] if k == end[0] else sizes[k]) for k in range(begin[0], last + 1)
    ]


def _first_positions(located_extents: Sequence[tuple[int, Extent]]) -> list[int]:
    """Return the start position of each extent in its file."""
    firsts, position, current = [], 0, -1
    for file_number, extent in located_extents:
        if file_number != current:
            position, current = 0, file_number
        firsts.append(position)
        position += extent.num_positions
    return firsts
