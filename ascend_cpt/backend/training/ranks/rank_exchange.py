"""Exchanges stop requests and times between all ranks, with one collective every few steps."""

from __future__ import annotations

import math
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ascend_cpt.backend.collectives import is_on_cpu, sum_over_ranks
from ascend_cpt.backend.training import stop_signals
from ascend_cpt.backend.training.ranks.busy_time import BusyTime
from ascend_cpt.backend.training.ranks.device_speed import DeviceSpeed
from ascend_cpt.monitor.goodput.slow_ranks import RankTimes

MAX_STEPS = 25
MAX_DELAY_S = 5.0
MAX_SHARE = 0.001
"""Of the time, for measuring how fast a rank computes."""
_NAME_BYTES = 64
_NUM_REQUESTS = len(stop_signals.SIGNALS) + 1


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """The result of an exchange, which is the same on every rank."""

    signal: signal.Signals | None
    """The signal that any rank has received."""
    is_stop_requested: bool
    """Whether any rank has found a stop request of tools/evaluate.py."""
    times: list[RankTimes]
    """The times of each rank; empty with one rank, and until all have measured everything."""


class RankExchange:
    """Decides after which steps the ranks exchange, and runs the exchange. All ranks must call it for the same steps.

    The first exchange of a launch follows its first step. The next is `MAX_STEPS` later, or earlier if that would take
    longer than `MAX_DELAY_S`. A stop request therefore waits at most that long, or one step. A single rank needs no
    collective and looks for requests after every step.

    Args:
        rank: This process.
        num_ranks: Number of processes.
    """

    def __init__(self, rank: int, num_ranks: int) -> None:
        self._rank, self._num_ranks = rank, num_ranks
        self._next_step = 0
        self._speed = BusyTime() if is_on_cpu() else DeviceSpeed()
        self._num_exchanges = 0
        # Measured since the last exchange (0: not measured), what it took, and the most that it last took on any rank.
        self._computing_s = self._cost_s = self._highest_cost_s = 0.0
        self._wait_s = 0.0
        self.node_names: tuple[str, ...] = ()
        """Host name of each rank, known after the first exchange of several ranks."""

    def is_due(self, step: int) -> bool:
        """Return whether the ranks exchange after this step. The answer is the same on every rank."""
        return step >= self._next_step

    def exchange(self, step: int, *, is_stop_requested: bool, step_s: float, data_wait_s: float) -> Exchanged:
        """Run an exchange, and measure the values to send with the next one.

        Args:
            step: The step that has ended.
            is_stop_requested: Whether this rank has found a stop request.
            step_s: Mean step time since the last exchange, in seconds.
            data_wait_s: The part of `step_s` that this rank spent waiting for data.
        """
        requests = [*stop_signals.list_received(), float(is_stop_requested)]
        start_s = time.perf_counter()
        rows = self._gather([*requests, step_s, data_wait_s, self._computing_s, self._wait_s, self._cost_s])
        self._wait_s = time.perf_counter() - start_s
        self._computing_s = self._cost_s = 0.0
        counts, times = rows[:, :_NUM_REQUESTS].sum(axis=0), rows[:, _NUM_REQUESTS:]
        if self._num_ranks > 1:
            self._highest_cost_s = float(times[:, 4].max()) or self._highest_cost_s
            self._plan_next(step, mean_step_s=float(times[:, 0].mean()))
        return Exchanged(
            signal=stop_signals.choose_signal(counts[:-1]),
            is_stop_requested=bool(counts[-1] > 0),
            times=self._list_times(times),
        )

    def _plan_next(self, step: int, *, mean_step_s: float) -> None:
        """Set the next exchange step from values received by all ranks, and measure the computing speed if due."""
        num_steps = max(1, min(MAX_STEPS, int(MAX_DELAY_S / max(mean_step_s, 1e-9))))
        self._next_step = step + num_steps
        if not self.node_names:
            self._prepare()
        self._num_exchanges += 1
        interval_s = max(num_steps * mean_step_s, 1e-9)
        every = max(1, math.ceil(self._highest_cost_s / (MAX_SHARE * interval_s)))
        if self._num_exchanges % every == 0:
            self._computing_s, self._cost_s = self._speed.measure()

    def _prepare(self) -> None:
        """Exchange host names, and agree on the size of the matrices on NPUs: the smallest found by any rank."""
        name = socket.gethostname().encode()[:_NAME_BYTES]
        size = self._speed.find_size() if isinstance(self._speed, DeviceSpeed) else 0
        rows = self._gather([size, *name.ljust(_NAME_BYTES, b"\0")])
        if isinstance(self._speed, DeviceSpeed):
            self._speed.set_size(int(rows[:, 0].min()))
        self.node_names = tuple(
            bytes(row.astype(np.uint8)).rstrip(b"\0").decode(errors="replace") for row in rows[:, 1:]
        )

    def _gather(self, values: Sequence[float]) -> npt.NDArray[np.float32]:
        """Return each rank's values in one row, as float32, which is exact for bytes and sufficient for times."""
        rows = np.zeros((self._num_ranks, len(values)))
        rows[self._rank] = values
        return sum_over_ranks(rows.ravel(), self._num_ranks).reshape(rows.shape)

    def _list_times(self, rows: npt.NDArray[np.float32]) -> list[RankTimes]:
        if self._num_ranks == 1 or not rows[:, 3].all():
            return []
        longest_wait_s = rows[:, 3].max()
        return [
            RankTimes(
                step_s=float(step_s),
                data_wait_s=float(data_wait_s),
                computing_s=float(computing_s),
                late_s=float(longest_wait_s - wait_s),
            )
            for step_s, data_wait_s, computing_s, wait_s, _ in rows
        ]
