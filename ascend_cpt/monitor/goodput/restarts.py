"""Finds the launches that continued a run, and why the launches before them ended, from the run's timeline."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ascend_cpt.monitor.goodput.timeline import ENDING, Interval, group_by_launch

UNKNOWN_CAUSE = "cause unknown, because the launcher ended as well"


@dataclass(frozen=True, kw_only=True)
class Restart:
    """A launch after the first one, and the end of the previous launch."""

    last_step: int
    """The last step recorded by the previous launch, or the step that it started from."""
    from_step: int
    """The step from which this launch continued."""
    is_interruption: bool
    """Whether the previous launch crashed, was killed or ended with an error."""
    cause: str
    """The error of the previous launch, or the cause that the launcher found, or "" if neither is known."""
    skipped: tuple[str, ...]
    """Why newer checkpoints could not be used."""

    def describe_cause(self) -> str:
        """Return why the previous launch ended, and which checkpoints were skipped."""
        end = (self.cause or UNKNOWN_CAUSE) if self.is_interruption else "stopped normally"
        return "; ".join([end, *(f"skipped a checkpoint: {line}" for line in self.skipped)])

    def describe(self) -> str:
        """Return one line."""
        return f"after step {self.last_step}, resumed at step {self.from_step}: {self.describe_cause()}"


def find_restarts(intervals: Sequence[Interval]) -> list[Restart]:
    """Return a run's restarts in order, from its launches' intervals."""
    return [
        Restart(
            last_step=max(launch[0].from_step, *(interval.last_step for interval in launch)),
            from_step=following[0].from_step,
            is_interruption=launch[-1].part != ENDING or bool(launch[-1].error),
            # The launcher repeats a cause that it cannot know to be recorded.
            cause=launch[-1].error or following[0].cause.removeprefix(f"{launch[0].cause}; then "),
            skipped=tuple(following[0].skipped),
        )
        for launch, following in itertools.pairwise(group_by_launch(intervals))
    ]
