"""A compiled step's communication operators, by kind and group of ranks."""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.config.parallel_layout import ParallelLayout

CSV_NAME = "comm_execute_order.csv"
POINT_TO_POINT = {"Send", "Receive"}
# Dimensions in rank-numbering order. The last one varies fastest.
DIMENSIONS = ("pipeline", "data", "context", "tensor")


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Operators of one kind within one group of ranks, summed over a step."""

    kind: str
    """`AllReduce`, `AllGather`, `ReduceScatter`, `Send`, ..."""
    group: str
    """The dimensions of the layout in which the ranks differ, e.g. `tensor` or `data × tensor`."""
    ranks: tuple[int, ...]
    count: int
    output_bytes: int
    """Total size of the operators' outputs on this rank."""


def read_exchanges(folder: Path, layout: ParallelLayout, num_steps: int) -> list[Exchange]:
    """Return a step's communication operators from MindSpore's record for a rank, most bytes first.

    Args:
        folder: The folder `rank_<n>` written by MindSpore.
        layout: The parallel layout.
        num_steps: Number of steps in the record.
    """
    path = next(iter(folder.rglob(CSV_NAME)), None)
    if path is None:
        return []  # one device: no communication
    counts: Counter[tuple[str, tuple[int, ...]]] = Counter()
    output_bytes: Counter[tuple[str, tuple[int, ...]]] = Counter()
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            ranks = tuple(int(rank) for rank in row["comm_rank"].split())
            if len(ranks) < 2:
                continue
            key = (row["primitive"], ranks)
            counts[key] += 1
            output_bytes[key] += int(row["output_size"])
    found = [
        Exchange(
            kind=kind,
            group=name_group(ranks, layout),
            ranks=ranks,
            count=count // num_steps,
            output_bytes=output_bytes[kind, ranks] // num_steps,
        )
        for (kind, ranks), count in counts.items()
    ]
    return sorted(found, key=lambda exchange: -exchange.output_bytes)


def name_group(ranks: tuple[int, ...], layout: ParallelLayout) -> str:
    """Return the names of the dimensions in which ranks differ."""
    sizes = (layout.pipeline_parallel, layout.data_parallel, layout.context_parallel, layout.tensor_parallel)
    places = [_locate(rank, sizes) for rank in ranks]
    differing = [name for axis, name in enumerate(DIMENSIONS) if len({place[axis] for place in places}) > 1]
    return " × ".join(differing)


def _locate(rank: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(rank // math.prod(sizes[axis + 1 :]) % size for axis, size in enumerate(sizes))
