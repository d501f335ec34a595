"""Best-fit packing (Ding et al., "Fewer Truncations Improve Language Modeling", arXiv 2404.10830).

Documents longer than a row are split into whole rows and a remainder. Documents and remainders are then put into rows
in order of decreasing length, each into the fullest row with enough room. No other document is cut.

The paper sorts the whole corpus, whereas this module sorts windows of bounded size. A window's emptiest rows are not
written; their documents are packed again with the next window.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np

from ascend_cpt.data.packed.packing.layout import (
    BLOCK_TOKENS,
    Numbers,
    Packer,
    RowLayout,
    Rows,
    add_special_tokens,
    split_documents,
)
from ascend_cpt.data.tokenizing.base import Encoded

WINDOW_TOKENS = 1 << 22
"""Size of a window: 4 Mi tokens (16 MiB), and for long rows 64 rows, but at most 32 Mi tokens (128 MiB)."""
WINDOW_ROWS = 64
MAX_WINDOW_TOKENS = 1 << 25
_CARRIED_PART = 8
"""At most one in eight rows of a window is packed again with the next one."""
_FREE_PART = 64
"""Rows with less free space than this part of a row are always written."""


class BestFitPacker(Packer):
    """Packs rows of whole documents. The rows depend on the documents' order but not on how they are batched."""

    def __init__(self, layout: RowLayout) -> None:
        super().__init__(layout)
        self._window_tokens = max(WINDOW_TOKENS, min(WINDOW_ROWS * self._row_tokens, MAX_WINDOW_TOKENS))
        self._ids: list[Rows] = []
        self._lengths: list[Numbers] = []
        self._waiting_tokens = 0

    def add(self, documents: Encoded) -> Iterator[Rows]:
        """Yield rows whenever a window is full."""
        stream, offsets = add_special_tokens(documents, self._layout)
        lengths = np.diff(offsets)
        self.num_tokens += stream.size
        self.num_cut_documents += int((lengths > self._row_tokens).sum())
        pieces = split_documents(lengths, self._row_tokens)
        ends = np.cumsum(pieces)
        first = begin = 0
        while first < len(pieces):
            missing = self._window_tokens - self._waiting_tokens
            stop = min(int(np.searchsorted(ends, begin + missing)) + 1, len(pieces))
            end = int(ends[stop - 1])
            self._ids.append(stream[begin:end])
            self._lengths.append(pieces[first:stop])
            self._waiting_tokens += end - begin
            first, begin = stop, end
            if self._waiting_tokens >= self._window_tokens:
                yield from self._pack(is_last=False)

    def finish(self) -> Iterator[Rows]:
        """Yield the rows of the last window."""
        if self._waiting_tokens:
            yield from self._pack(is_last=True)

    def _pack(self, *, is_last: bool) -> Iterator[Rows]:
        ids, lengths = np.concatenate(self._ids), np.concatenate(self._lengths)
        rows, num_rows = assign_rows(lengths, self._row_tokens)
        is_carried = np.zeros(num_rows, bool)
        if not is_last:
            free = self._row_tokens - np.bincount(rows, lengths, num_rows).astype(np.int64)
            emptiest = np.argsort(-free, kind="stable")[: num_rows // _CARRIED_PART]
            is_carried[emptiest] = free[emptiest] > self._row_tokens // _FREE_PART
        # Rows are ordered by their first documents, and documents within a row are in input order.
        _, first = np.unique(rows, return_index=True)
        places = np.empty(num_rows, np.int64)
        places[np.argsort(first)] = np.arange(num_rows)
        is_written = ~is_carried[rows]
        order = np.flatnonzero(is_written)
        order = order[np.argsort(places[rows[order]], kind="stable")]
        carried = np.flatnonzero(~is_written)
        begins = np.cumsum(lengths) - lengths
        self._ids, self._lengths = [_gather(ids, begins[carried], lengths[carried])], [lengths[carried]]
        self._waiting_tokens = self._ids[0].size
        yield from self._write(ids, lengths, order, places[rows[order]])

    def _write(self, ids: Rows, lengths: Numbers, order: Numbers, rows: Numbers) -> Iterator[Rows]:
        """Yield the rows of the pieces `order`, sorted by row (`rows`), in blocks to bound memory use."""
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        begins = np.cumsum(lengths) - lengths
        step = max(1, BLOCK_TOKENS // self._row_tokens)
        for first in range(0, len(starts), step):
            stop = int(starts[first + step]) if first + step < len(starts) else len(order)
            pieces = order[starts[first] : stop]
            totals = np.add.reduceat(lengths[pieces], starts[first : first + step] - starts[first])
            yield from self._fill_rows(_gather(ids, begins[pieces], lengths[pieces]), totals)


def assign_rows(lengths: Numbers, capacity: int) -> tuple[Numbers, int]:
    """Return the row of each piece, int64 of shape (len(lengths),), and the number of rows, by best-fit decreasing.

    Pieces of equal length are placed together: they fill the fullest row with room, then the next one, and so on.

    Args:
        lengths: Tokens of each piece, from 1 to `capacity`.
        capacity: Tokens of a row.
    """
    order = np.argsort(-lengths, kind="stable")
    rows_in_order = np.empty(len(lengths), np.int64)
    distinct, counts = np.unique(lengths, return_counts=True)
    num_rows = place = 0
    frees: list[int] = []
    """Sorted sizes of free space, and the rows that have each."""
    rows_by_free: dict[int, list[int]] = {}

    def open_rows(free: int, rows: list[int]) -> None:
        if free and rows:
            if free not in rows_by_free:
                insort(frees, free)
            rows_by_free.setdefault(free, []).extend(rows)

    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        left = count
        while left:
            index = bisect_left(frees, length)
            if index < len(frees):
                free = frees[index]
                candidates = rows_by_free[free]
            else:
                free = capacity
                needed = -(-left // (capacity // length))
                candidates = list(range(num_rows, num_rows + needed))
                num_rows += needed
            per_row = free // length
            used = -(-left // per_row)
            rows = candidates[:used]
            if free < capacity:
                del candidates[:used]
                if not candidates:
                    del rows_by_free[free], frees[index]
            placed = min(left, per_row * len(rows))
            rows_in_order[place : place + placed] = np.repeat(rows, per_row)[:placed]
            in_last = placed - per_row * (len(rows) - 1)
            open_rows(free - per_row * length, rows[:-1])
            open_rows(free - in_last * length, rows[-1:])
            place, left = place + placed, left - placed
    assigned = np.empty(len(lengths), np.int64)
    assigned[order] = rows_in_order
    return assigned, num_rows


def _gather(ids: Rows, begins: Numbers, lengths: Numbers) -> Rows:
    """Return the concatenated ids of the pieces."""
    shifts = begins - (np.cumsum(lengths) - lengths)
    gathered: Rows = ids[np.repeat(shifts, lengths) + np.arange(int(lengths.sum()))]
    return gathered
