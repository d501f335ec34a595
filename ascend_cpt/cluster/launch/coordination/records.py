"""The messages between launchers and the coordinator. Any other message is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from ascend_cpt.cluster.launch.coordination.restart_policy import MAX_CAUSE_CHARACTERS, End, Outcome, RestartDecision
from ascend_cpt.cluster.launch.signals import FORWARDED_SIGNALS
from ascend_cpt.cluster.messages.records import (
    InvalidRecord,
    exactly,
    flag,
    one_of,
    optional,
    read_record,
    real,
    several,
    text,
    whole,
)

MAX_NODES = 1 << 16
MAX_WORKERS = 1 << 24
MAX_STEP = 1 << 48
MAX_RESTARTS = 10**9
MAX_LINES, MAX_LINE_CHARACTERS = 20, 2000
MAX_TEXT_CHARACTERS = 4000
MAX_REASON_CHARACTERS = 100_000  # may name many nodes
_LINE = text(MAX_LINE_CHARACTERS)
_TEXT = text(MAX_TEXT_CHARACTERS)
# Not SIGKILL, because a job stops only in ways that let its workers save.
_STOP_SIGNAL = one_of(*(int(number) for number in FORWARDED_SIGNALS))


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The sender is still running."""


@dataclass(frozen=True, kw_only=True)
class Join:
    """A launcher is ready for the next attempt.

    `size` is the number of workers, nodes and spare nodes it was started for. `cause` is why its last attempt ended, if
    it lost the coordinator then.
    """

    size: Annotated[tuple[int, int, int], exactly(whole(1, MAX_WORKERS), whole(1, MAX_NODES), whole(0, MAX_NODES))]
    host: Annotated[str, text(255)]
    num_restarts: Annotated[int, whole(0, MAX_RESTARTS)]
    time_s: Annotated[float, real(0, 1e12)]
    cause: Annotated[str, text(MAX_CAUSE_CHARACTERS)]


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A launcher received a stop signal."""

    number: Annotated[int, _STOP_SIGNAL]


@dataclass(frozen=True, kw_only=True)
class OutcomeRecord:
    """The fields of an Outcome."""

    end: Annotated[str, one_of(*(end.value for end in End))]
    code: Annotated[int, whole(0, 255)]
    reason: Annotated[str, _TEXT]
    lines: Annotated[tuple[str, ...], several(_LINE, MAX_LINES)]
    step: Annotated[int | None, optional(whole(0, MAX_STEP))]


def read_outcome(value: Any) -> Outcome:
    """Return the outcome from its JSON form.

    Raises:
        InvalidRecord: for anything else, or for an inconsistent exit code: 0 means that all workers succeeded.
    """
    record = read_record(OutcomeRecord, value)
    if (record.code == 0) != (record.end in (End.DONE.value, End.CONTINUES.value)):
        raise InvalidRecord("an exit code that contradicts the outcome")
    return Outcome(**(vars(record) | {"end": End(record.end)}))


def write_outcome(outcome: Outcome) -> dict[str, Any]:
    """Return the JSON form of an outcome, with texts cut to the limits of `read_outcome`."""
    return {
        "end": outcome.end.value,
        "code": outcome.code,
        "reason": outcome.reason[:MAX_TEXT_CHARACTERS],
        "lines": [line[:MAX_LINE_CHARACTERS] for line in outcome.lines[-MAX_LINES:]],
        "step": outcome.step,
    }


@dataclass(frozen=True, kw_only=True)
class Ended:
    """An attempt ended on a node. `outcome` is made by `write_outcome`."""

    outcome: Annotated[Any, read_outcome]


@dataclass(frozen=True, kw_only=True)
class Go:
    """All nodes have joined, so start the attempt.

    `cause` is why the last one was interrupted, "" if it was not.
    `place` is the receiver's node rank for msrun, and `hosts` are the host names of all nodes in order of rank.
    `reason` states why the nodes differ from those of the previous attempt; empty if they are the same.
    """

    warnings: Annotated[tuple[str, ...], several(_LINE, MAX_NODES)]
    cause: Annotated[str, text(MAX_CAUSE_CHARACTERS)]
    attempt: Annotated[int, whole(1, MAX_RESTARTS)]
    place: Annotated[int, whole(0, MAX_NODES)]
    hosts: Annotated[tuple[str, ...], several(text(255), MAX_NODES)]
    reason: Annotated[str, text(MAX_REASON_CHARACTERS)]


@dataclass(frozen=True, kw_only=True)
class Standby:
    """Wait: this node is a spare for now."""

    message: Annotated[str, _TEXT]


@dataclass(frozen=True, kw_only=True)
class Cancel:
    """End the attempt, because another node's processes ended for this reason and with these log lines."""

    reason: Annotated[str, text(2 * MAX_TEXT_CHARACTERS)]
    lines: Annotated[tuple[str, ...], several(_LINE, MAX_LINES)]


@dataclass(frozen=True, kw_only=True)
class StopBy:
    """The launcher on another node, `by`, received a stop signal."""

    number: Annotated[int, _STOP_SIGNAL]
    by: Annotated[str, _LINE]


@dataclass(frozen=True, kw_only=True)
class Refused:
    """This launcher does not belong to the job as it was started."""

    message: Annotated[str, _TEXT]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The fields of a RestartDecision."""

    again: Annotated[bool, flag]
    code: Annotated[int, whole(0, 255)]
    delay_s: Annotated[float, real(0, 1e9)]
    message: Annotated[str, text(2 * MAX_TEXT_CHARACTERS)]

    def to_decision(self) -> RestartDecision:
        return RestartDecision(**vars(self))


FromLauncher = Heartbeat | Join | Stop | Ended
FROM_LAUNCHER = (Heartbeat, Join, Stop, Ended)
FromCoordinator = Heartbeat | Go | Standby | Cancel | StopBy | Refused | Decision
FROM_COORDINATOR = (Heartbeat, Go, Standby, Cancel, StopBy, Refused, Decision)
