"""A run's phases and row order: maps each position in the run to a source and a row.

Each source has its own order (`RowOrder`), which later phases continue where earlier ones stopped. A run's rows
depend only on its sources, phases, batch size and seed, not on the number of ranks or where the run was resumed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from ascend_cpt.recipe.blend import Blend
from ascend_cpt.recipe.budget import BatchSteps
from ascend_cpt.recipe.order import RowOrder

ROWS_AT_ONCE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Steps `first_step` to `stop_step` (exclusive) of a run, with each source's share.

    `shares` is None if the rows of all sources are shuffled together, which weights sources by size.
    """

    name: str
    first_step: int
    stop_step: int
    shares: dict[str, Fraction] | None = None

    @property
    def num_steps(self) -> int:
        """Number of steps in the phase."""
        return self.stop_step - self.first_step


@dataclass(frozen=True, kw_only=True)
class SampleOrder:
    """The rows of a whole run: `num_rows` for each source, in a fixed order, and consecutive phases from step 0.

    A source in `pool_rows` is a random subset of that many rows. With a batch ramp, `ramp` gives the rows in each step,
    and `global_batch_size` is the last size. With `restarts`, every phase begins with the first rows of its sources.
    """

    num_rows: dict[str, int]
    phases: tuple[Phase, ...]
    global_batch_size: int
    seed: int
    pool_rows: dict[str, int] = field(default_factory=dict)
    ramp: BatchSteps | None = None
    restarts: bool = False

    def __post_init__(self) -> None:
        """Assert what resolving the configuration guarantees."""
        assert all(rows > 0 for rows in self.num_rows.values())
        assert all(self.num_rows[name] <= rows for name, rows in self.pool_rows.items())
        assert [phase.first_step for phase in self.phases] == [0, *(phase.stop_step for phase in self.phases[:-1])]
        assert len(self.phases) == 1 or all(phase.shares is not None for phase in self.phases)

    @property
    def total_rows(self) -> int:
        """Number of rows in the whole run, over all ranks."""
        return self.first_position(self.phases[-1].stop_step)

    def first_position(self, step: int) -> int:
        """Return the position of the first row of a step, counted from 0: the number of rows before it."""
        return self.ramp.first_position(step) if self.ramp is not None else step * self.global_batch_size

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source number and the row within the source (both int64) at each position (int64, from 0)."""
        positions = np.asarray(positions, dtype=np.int64)
        if self.phases[0].shares is None:
            sources, rows = self._locate_shuffled_together(positions)
            return sources, self._choose_from_pools(sources, rows)
        sources, ordinals = np.empty_like(positions), np.empty_like(positions)
        for index, phase in enumerate(self.phases):
            start, stop = (self.first_position(step) for step in (phase.first_step, phase.stop_step))
            inside = (positions >= start) & (positions < stop)
            if inside.any():
                local, drawn = self._blends[index].locate(positions[inside] - start)
                numbers = self._source_numbers[index][local]
                sources[inside] = numbers
                ordinals[inside] = drawn + self._drawn_before[index][numbers]
        rows = np.empty_like(positions)
        for number, (name, num_rows) in enumerate(self.num_rows.items()):
            chosen = sources == number
            if chosen.any():
                order = RowOrder(num_rows=num_rows, seed=zlib.crc32(f"{self.seed}:{name}".encode()))
                rows[chosen] = order.rows_at(ordinals[chosen])
        return sources, self._choose_from_pools(sources, rows)

    def _choose_from_pools(self, sources: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Map rows of subset sources to rows of their datasets, where row k is the k-th row of a permutation."""
        if not self.pool_rows:
            return rows
        rows = rows.copy()
        for number, name in enumerate(self.num_rows):
            chosen = sources == number
            if name in self.pool_rows and chosen.any():
                pool = RowOrder(num_rows=self.pool_rows[name], seed=zlib.crc32(f"{self.seed}:{name}:subset".encode()))
                rows[chosen] = pool.rows_at(rows[chosen])
        return rows

    def count(self, first_position: int, stop_position: int) -> dict[str, int]:
        """Return the number of rows from each source in `first_position` to `stop_position` (exclusive)."""
        is_whole_run = (first_position, stop_position) == (0, self.total_rows)
        counts = self._counts_of_run if is_whole_run else self._count_between(first_position, stop_position)
        return {name: int(count) for name, count in zip(self.num_rows, counts, strict=True)}

    @cached_property
    def _counts_of_run(self) -> np.ndarray:
        """Cached because it is needed several times at startup and is slow for sources that are shuffled together."""
        return self._count_between(0, self.total_rows)

    def _count_between(self, first_position: int, stop_position: int) -> np.ndarray:
        if self.phases[0].shares is None:
            return self._count_shuffled_together(first_position, stop_position)
        counts: np.ndarray = self._count_before(stop_position) - self._count_before(first_position)
        return counts

    @cached_property
    def _blends(self) -> list[Blend]:
        return [Blend(shares=tuple((phase.shares or {}).values())) for phase in self.phases]

    @cached_property
    def _source_numbers(self) -> list[np.ndarray]:
        """For each phase, the indices of its sources."""
        numbers = {name: number for number, name in enumerate(self.num_rows)}
        return [np.array([numbers[name] for name in phase.shares or {}], dtype=np.int64) for phase in self.phases]

    @cached_property
    def _drawn_before(self) -> list[np.ndarray]:
        """For each phase, the number of rows from each source used by earlier phases."""
        drawn = [np.zeros(len(self.num_rows), dtype=np.int64)]
        if self.restarts:
            return drawn * len(self.phases)
        for index, phase in enumerate(self.phases[:-1]):
            counts = drawn[-1].copy()
            rows = self.first_position(phase.stop_step) - self.first_position(phase.first_step)
            counts[self._source_numbers[index]] += self._blends[index].count(rows)
            drawn.append(counts)
        return drawn

    def _count_before(self, position: int) -> np.ndarray:
        counts = np.zeros(len(self.num_rows), dtype=np.int64)
        for index, phase in enumerate(self.phases):
            first, stop = (self.first_position(step) for step in (phase.first_step, phase.stop_step))
            if position > first:
                counts[self._source_numbers[index]] += self._blends[index].count(min(position, stop) - first)
        return counts

    @cached_property
    def _first_rows(self) -> np.ndarray:
        """Offset of each source in the concatenation of all sources, followed by the total number of rows."""
        return np.concatenate([[0], np.cumsum(list(self.num_rows.values()))]).astype(np.int64)

    def _locate_shuffled_together(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = RowOrder(num_rows=int(self._first_rows[-1]), seed=self.seed).rows_at(positions)
        sources = np.searchsorted(self._first_rows, rows, side="right") - 1
        return sources, rows - self._first_rows[sources]

    def _count_shuffled_together(self, first_position: int, stop_position: int) -> np.ndarray:
        sizes = np.diff(self._first_rows)
        if len(sizes) == 1:
            return np.array([stop_position - first_position])
        per_epoch = int(sizes.sum())
        counts = np.zeros_like(sizes)
        position = first_position
        while position < stop_position:
            if position % per_epoch == 0 and stop_position - position >= per_epoch:
                # A whole epoch contains every row once; only partial epochs are enumerated.
                epochs = (stop_position - position) // per_epoch
                counts += epochs * sizes
                position += epochs * per_epoch
                continue
            stop = min(position + ROWS_AT_ONCE, stop_position, (position // per_epoch + 1) * per_epoch)
            sources, _ = self._locate_shuffled_together(np.arange(position, stop))
            counts += np.bincount(sources, minlength=len(sizes))
            position = stop
        return counts

    def to_record(self) -> dict[str, Any]:
        """Return the order as plain values, for YAML and JSON."""
        record = {
            "num_rows": [[name, rows] for name, rows in self.num_rows.items()],
            "phases": [
                [
                    phase.name,
                    phase.first_step,
                    phase.stop_step,
                    None if phase.shares is None else [[name, str(share)] for name, share in phase.shares.items()],
                ]
                for phase in self.phases
            ],
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
        }
        if self.pool_rows:
            record["pool_rows"] = [[name, rows] for name, rows in self.pool_rows.items()]
        if self.restarts:
            record["restarts"] = True
        if self.ramp is not None:
            record["ramp"] = [list(stage) for stage in zip(self.ramp.first_steps, self.ramp.sizes, strict=True)]
        return record

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> SampleOrder:
        """Return the order from the output of `to_record`."""
        phases: Sequence[Any] = record["phases"]
        ramp: Sequence[Any] = record.get("ramp") or ()
        return SampleOrder(
            num_rows={name: int(rows) for name, rows in record["num_rows"]},
            phases=tuple(
                Phase(
                    name=name,
                    first_step=first,
                    stop_step=stop,
                    shares=None if shares is None else {source: Fraction(share) for source, share in shares},
                )
                for name, first, stop, shares in phases
            ),
            global_batch_size=record["global_batch_size"],
            seed=record["seed"],
            pool_rows={name: int(rows) for name, rows in record.get("pool_rows") or ()},
            ramp=BatchSteps(first_steps=tuple(first for first, _ in ramp), sizes=tuple(size for _, size in ramp))
            if ramp
            else None,
            restarts=bool(record.get("restarts")),
        )
