"""Finds the launches that continued a run, from its timeline."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ascend_cpt.config.values import format_number
from ascend_cpt.monitor.goodput.timeline import ENDING, Interval


@dataclass(frozen=True, kw_only=True)
class Restart:
    """A launch after the first one."""

    from_step: int
    """The step that it started from."""
    num_lost_steps: int
    """Steps of the launch before that were computed again."""
    is_interruption: bool
    """Whether the launch before ended with an error or in no orderly way."""

    def describe(self) -> str:
        """Return a few words about the restart."""
        cause = "interrupted" if self.is_interruption else "resumed"
        lost = f", {format_number(self.num_lost_steps, 'step')} computed again" if self.num_lost_steps else ""
        return f"{cause} at step {self.from_step}{lost}"


def find_restarts(intervals: Sequence[Interval]) -> list[Restart]:
    """Return a run's restarts in order."""
    launches: dict[float, list[Interval]] = {}
    for interval in intervals:
        launches.setdefault(interval.launch_s, []).append(interval)
    ordered = [launches[key] for key in sorted(launches)]
    restarts = []
    for before, launch in itertools.pairwise(ordered):
        from_step = launch[0].from_step
        last_step = max(interval.last_step for interval in before)
        restarts.append(
            Restart(
                from_step=from_step,
                num_lost_steps=max(0, last_step - from_step),
                is_interruption=before[-1].part != ENDING or bool(before[-1].error),
            )
        )
    return restarts
