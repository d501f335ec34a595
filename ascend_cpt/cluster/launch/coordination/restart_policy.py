"""Outcomes of attempts, and the restart policy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ascend_cpt.errors import EXIT_FAILURE, EXIT_OK
from ascend_cpt.terminal_text import strip_controls

MAX_DELAY_S = 300.0
VMSTAT = Path("/proc/vmstat")
HANG = "hang: "
"""Start of the reason of a hang, as the supervisor writes it."""


class End(str, Enum):
    """Why an attempt ended on a node."""

    DONE = "done"
    CONTINUES = "continues"  # all workers succeeded, and the job continues in new ones
    FAILED = "failed"  # a crash: the same step may fail again
    KILLED = "killed"  # from outside, not caused by the step
    FINAL = "final"  # a user error or a deliberate stop: a restart would end the same way
    STOPPED = "stopped"  # by a signal to a launcher
    CANCELLED = "cancelled"  # because another node's processes ended


# Priority of outcomes when choosing the root cause, lowest first. A killed process makes others fail, possibly with an
# error message of their own.
CAUSE_PRIORITY = {
    End.STOPPED: 0,
    End.KILLED: 1,
    End.FINAL: 2,
    End.FAILED: 2,
    End.CANCELLED: 3,
    End.CONTINUES: 4,
    End.DONE: 5,
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended on a node.

    `code` is the launcher's exit code if the job ends here. `reason` is one line with the process and its log, and
    `lines` are the relevant lines from that log. `step` is the last step finished in this attempt, or None.
    """

    end: End
    code: int
    reason: str = ""
    lines: tuple[str, ...] = ()
    step: int | None = None

    @property
    def cause(self) -> str:
        """The reason, with the first error line if there is one, or "" if the attempt was not interrupted.

        A user error before the first step is not an interruption. The text has no control characters of a log, because
        the launcher passes it on in an environment variable.
        """
        is_interruption = self.end in (End.FAILED, End.KILLED) or (self.end is End.FINAL and self.step is not None)
        if not is_interruption:
            return ""
        has_error = self.end is not End.KILLED and self.lines and not self.reason.startswith(HANG)
        return strip_controls(f"{self.reason}: {self.lines[0]}" if has_error else self.reason)


MAX_CAUSE_CHARACTERS = 2000
THEN = "; then "


def add_cause(earlier: str, outcome: Outcome, cause: str) -> str:
    """Return the cause to report in the next attempt, in which training may record it.

    If this attempt finished no step, it may have ended before training could record the `earlier` cause.
    """
    if not cause or not earlier or outcome.step is not None:
        return cause[:MAX_CAUSE_CHARACTERS]
    return (earlier + THEN + cause)[-MAX_CAUSE_CHARACTERS:]


DONE = Outcome(end=End.DONE, code=EXIT_OK)
CONTINUES = Outcome(end=End.CONTINUES, code=EXIT_OK)


@dataclass(frozen=True, kw_only=True)
class RestartDecision:
    """The decision after an attempt: restart after `delay_s`, or exit with `code`. `message` states the reason."""

    again: bool
    code: int = EXIT_OK
    delay_s: float = 0.0
    message: str = ""


class RestartPolicy:
    """Allows at most `max_restarts` restarts, and none after the same step failed twice in a row.

    Up to `max_losses` restarts that leave out nodes come on top of these.
    """

    def __init__(self, max_restarts: int, first_delay_s: float, max_losses: int = 0) -> None:
        self._max_restarts, self._first_delay_s, self._max_losses = max_restarts, first_delay_s, max_losses
        self._num_restarts = 0
        self._num_losses = 0
        self._num_without_progress = 0
        self._furthest_step = -1
        self._last_failure: Outcome | None = None
        self._last_culprit: int | None = None

    @property
    def has_restarted(self) -> bool:
        """Whether the job was restarted, possibly before this launcher was."""
        return self._num_restarts + self._num_losses > 0

    def count_earlier(self, num_restarts: int) -> None:
        """Include restarts counted by another node, in case this launcher was itself restarted."""
        self._num_restarts = max(self._num_restarts, num_restarts - self._num_losses)

    def has_failed_alone(self, node: int | None, outcome: Outcome) -> bool:
        """Return whether this node alone ended this attempt and the one before, without progress between the two."""
        last = self._last_failure
        if node is None or node != self._last_culprit or last is None:
            return False
        return outcome.step is None or (last.step is not None and outcome.step <= last.step)

    def decide(self, outcome: Outcome, *, culprit: int | None = None, without: str = "") -> RestartDecision:
        """Return the decision after an attempt.

        Args:
            outcome: The root cause of its end.
            culprit: The only node that failed, or None if there are several or none.
            without: Names the nodes that the restart can do without, as "after the loss of ..." or "without ...";
                empty if there are none.
        """
        last = self._last_failure
        if outcome.end in (End.FAILED, End.KILLED):
            self._last_failure, self._last_culprit = outcome, culprit
        if without and outcome.end in (End.FAILED, End.KILLED) and self._num_losses < self._max_losses:
            self._num_losses += 1
            delay_s = self._choose_delay(outcome)
            message = f"restart {without} in {delay_s:g} s{_describe_step(outcome)}"
            return RestartDecision(again=True, code=EXIT_FAILURE, delay_s=delay_s, message=message)
        if outcome.end is End.CONTINUES:
            self._last_failure = None
            return RestartDecision(again=True, message=f"the job continues after step {outcome.step}")
        if outcome.end not in (End.FAILED, End.KILLED) or self._max_restarts == 0:
            return RestartDecision(again=False, code=outcome.code)
        if outcome.end is End.FAILED and last and last.end is End.FAILED and last.step == outcome.step:
            where = "before its first step" if outcome.step is None else f"after step {outcome.step}"
            return RestartDecision(
                again=False,
                code=outcome.code,
                message=f"no restart: the job failed {where} twice in a row, so a restart would fail as well",
            )
        if self._num_restarts >= self._max_restarts:
            return RestartDecision(
                again=False,
                code=outcome.code,
                message=f"no restart: the limit is reached (--max-restarts {self._max_restarts})",
            )
        self._num_restarts += 1
        delay_s = self._choose_delay(outcome)
        return RestartDecision(
            again=True,
            code=EXIT_FAILURE,
            delay_s=delay_s,
            message=f"restart {self._num_restarts} of {self._max_restarts} in {delay_s:g} s{_describe_step(outcome)}",
        )

    def _choose_delay(self, outcome: Outcome) -> float:
        """Return the delay before the restart, in seconds: twice the last one if there was no progress."""
        advanced = outcome.step is not None and outcome.step > self._furthest_step
        self._furthest_step = max(self._furthest_step, -1 if outcome.step is None else outcome.step)
        self._num_without_progress = 0 if advanced else self._num_without_progress + 1
        doublings = max(0, self._num_without_progress - 1)
        delay_s: float = min(self._first_delay_s * 2**doublings, max(MAX_DELAY_S, self._first_delay_s))
        return delay_s


def _describe_step(outcome: Outcome) -> str:
    return "" if outcome.step is None else f" (last finished step: {outcome.step})"


def count_memory_kills(vmstat: Path = VMSTAT) -> int:
    """Return how many processes the kernel's out-of-memory killer has ended, or 0 if unknown."""
    try:
        lines = vmstat.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
