"""How an attempt at a job ended, and whether another one follows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ascend_cpt.errors import EXIT_FAILURE, EXIT_OK

MAX_DELAY_S = 300.0
VMSTAT = Path("/proc/vmstat")


class End(str, Enum):
    """Why one node's processes of an attempt ended."""

    DONE = "done"
    FAILED = "failed"  # of itself: the same step may fail again
    KILLED = "killed"  # from outside: says nothing about the step
    FINAL = "final"  # the user's mistake, or a stop that the run asked for: another attempt would end the same way
    STOPPED = "stopped"  # by a signal to a launcher
    CANCELLED = "cancelled"  # because another node's processes ended


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of one node's part of an attempt.

    `code` is the launcher's exit code if this is the end of the job; `reason` one line that names the process and its
    log; `lines` what that log says; `step` the last step that was finished in this attempt, None when none was.
    """

    end: End
    code: int
    reason: str = ""
    lines: tuple[str, ...] = ()
    step: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self) | {"end": self.end.value}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Outcome:
        """Return the outcome that `to_json` wrote."""
        return cls(**(value | {"end": End(value["end"]), "lines": tuple(value["lines"])}))


DONE = Outcome(end=End.DONE, code=EXIT_OK)


@dataclass(frozen=True, kw_only=True)
class RestartDecision:
    """What follows an attempt: the next one after `delay_s`, or the end with `code`. `message` says why."""

    again: bool
    code: int = EXIT_OK
    delay_s: float = 0.0
    message: str = ""


class RestartPolicy:
    """At most `max_restarts` restarts, and none when the same step failed of itself twice in a row."""

    def __init__(self, max_restarts: int, first_delay_s: float) -> None:
        self._max_restarts, self._first_delay_s = max_restarts, first_delay_s
        self._num_restarts = 0
        self._num_without_progress = 0
        self._furthest_step = -1
        self._last_failure: Outcome | None = None

    def count_earlier(self, num_restarts: int) -> None:
        """Take over the restarts that another node knows of: this one was itself started anew in between."""
        self._num_restarts = max(self._num_restarts, num_restarts)

    def decide(self, outcome: Outcome) -> RestartDecision:
        """Return what follows `outcome`, the root cause of the attempt's end."""
        if outcome.end not in (End.FAILED, End.KILLED) or self._max_restarts == 0:
            return RestartDecision(again=False, code=outcome.code)
        last, self._last_failure = self._last_failure, outcome
        if outcome.end is End.FAILED and last and last.end is End.FAILED and last.step == outcome.step:
            where = "before its first step" if outcome.step is None else f"after step {outcome.step}"
            return RestartDecision(
                again=False,
                code=outcome.code,
                message=f"no restart: the job failed {where} twice in a row, so another attempt would as well",
            )
        if self._num_restarts == self._max_restarts:
            return RestartDecision(
                again=False, code=outcome.code, message=f"no restart: all {self._max_restarts} restarts are used up"
            )
        self._num_restarts += 1
        advanced = outcome.step is not None and outcome.step > self._furthest_step
        self._furthest_step = max(self._furthest_step, -1 if outcome.step is None else outcome.step)
        self._num_without_progress = 0 if advanced else self._num_without_progress + 1
        doublings = max(0, self._num_without_progress - 1)
        delay_s = min(self._first_delay_s * 2**doublings, max(MAX_DELAY_S, self._first_delay_s))
        return RestartDecision(
            again=True,
            code=EXIT_FAILURE,
            delay_s=delay_s,
            message=f"restart {self._num_restarts} of {self._max_restarts} in {delay_s:g} s"
            + (f" (last finished step: {outcome.step})" if outcome.step is not None else ""),
        )


def count_memory_kills(vmstat: Path = VMSTAT) -> int:
    """Return how many processes this machine's kernel has killed for want of memory; 0 where it does not say."""
    try:
        lines = vmstat.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
