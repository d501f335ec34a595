"""The forgetting alarm, raised when a held-out loss or task score has worsened by more than its limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ascend_cpt.config.monitoring_schema import ValidationSetConfig
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.config.values import Patience
from ascend_cpt.monitor.record import Judged, TaskRecord, ValidationRecord, read_judged


@dataclass(frozen=True, kw_only=True)
class AlarmLimits:
    """The limits of a validation set or a task.

    With `stops`, the run stops once the value has been beyond its limit for `patience_steps` steps, or for
    `patience_validations` validations, since the first validation beyond the limit. At most one of the two is above 0.
    If both are 0, the run stops at that first validation.
    """

    max_change: float | None = None
    """Largest change for the worse that raises no alarm, in nats or in units of the score; None disables the alarm."""
    stops: bool = False
    patience_steps: int = 0
    patience_validations: int = 0
    metric: str = ""
    """Metric of a task: recorded scores of another metric are ignored. Empty for a validation set."""

    @property
    def has_patience(self) -> bool:
        """Whether the run may continue for a while after the value exceeds its limit."""
        return self.stops and (self.patience_steps > 0 or self.patience_validations > 0)


def make_limits(
    max_change: float | None, *, stops: bool, patience: Patience | None, tokens_per_step: int, metric: str = ""
) -> AlarmLimits:
    """Return the limits for a validation set or task from its settings."""
    steps = patience.to_steps(tokens_per_step) if patience is not None else 0
    return AlarmLimits(
        max_change=max_change,
        stops=stops,
        patience_steps=steps or 0,
        patience_validations=patience.count if patience is not None and steps is None else 0,
        metric=metric,
    )


def make_alarm(
    sets: Mapping[str, ValidationSetConfig],
    tasks: Mapping[str, TaskConfig],
    *,
    metrics: Mapping[str, str],
    tokens_per_step: int,
) -> ForgettingAlarm:
    """Return the alarm for validation sets and tasks. `metrics` gives each task's metric."""
    return ForgettingAlarm(
        sets={
            name: make_limits(
                entry.max_increase,
                stops=entry.on_increase == "stop",
                patience=entry.patience,
                tokens_per_step=tokens_per_step,
            )
            for name, entry in sets.items()
        },
        tasks={
            name: make_limits(
                task.max_drop,
                stops=task.on_drop == "stop",
                patience=task.patience,
                tokens_per_step=tokens_per_step,
                metric=metrics[name],
            )
            for name, task in tasks.items()
        },
    )


@dataclass(frozen=True, kw_only=True)
class AlarmVerdict:
    """The verdict on a record: `message` is a warning to print, if any; `stop` ends the run."""

    record: Judged
    message: str = ""
    stop: bool = False


@dataclass(kw_only=True)
class _State:
    """The state of a validation set or task: its baseline, and the validations beyond its limit."""

    base_step: int
    base: float
    beyond_since: int | None = None
    num_later: int = 0
    """Validations beyond the limit after the first one."""
    last_warned: float = 0.0
    """Change for the worse at the last warning."""


class ForgettingAlarm:
    """Compares each validation with the baseline of its set or task, which is the run's first record.

    Consecutive alarms print one warning, and another one each time the value worsens by a further `max_change`. With
    `stops`, each validation with an alarm prints a warning.
    """

    def __init__(
        self, *, sets: Mapping[str, AlarmLimits] | None = None, tasks: Mapping[str, AlarmLimits] | None = None
    ) -> None:
        self._limits: dict[type, Mapping[str, AlarmLimits]] = {ValidationRecord: sets or {}, TaskRecord: tasks or {}}
        self._states: dict[tuple[type, str], _State] = {}

    def restore(self, records: Iterable[Mapping[str, Any]]) -> list[AlarmVerdict]:
        """Restore a resumed run's recorded validations. Return the verdict on each set's or task's last one."""
        last: dict[tuple[type, str], AlarmVerdict] = {}
        for values in records:
            record = read_judged(values)
            limits = self._limits[type(record)].get(record.name)
            if limits is None or (isinstance(record, TaskRecord) and limits.metric not in ("", record.metric)):
                continue
            last[type(record), record.name] = self.judge(record)
        return list(last.values())

    def judge(self, record: Judged) -> AlarmVerdict:
        """Return the record with its baseline, and whether to warn or to stop."""
        limits = self._limits[type(record)][record.name]
        value = record.loss if isinstance(record, ValidationRecord) else record.score
        key = (type(record), record.name)
        state = self._states.setdefault(key, _State(base_step=record.step, base=value))
        falls = isinstance(record, TaskRecord) and record.higher_is_better
        worse = state.base - value if falls else value - state.base
        # Written so that NaN triggers an alarm.
        if limits.max_change is None or worse <= limits.max_change:
            message = _describe_recovery(record, value) if state.beyond_since is not None else ""
            state.beyond_since = None
            return AlarmVerdict(record=_complete(record, state), message=message)
        is_first = state.beyond_since is None
        if is_first:
            state.beyond_since, state.num_later = record.step, 0
        else:
            state.num_later += 1
        warns = limits.stops or is_first or not worse <= state.last_warned + limits.max_change
        message = ""
        if warns:
            state.last_warned = worse
            message = _describe_alarm(record, value, state, limits) + _describe_patience(record.step, state, limits)
        stop = limits.stops and _count_left(record.step, state, limits) <= 0
        return AlarmVerdict(record=_complete(record, state), message=message, stop=stop)


def describe_stop(verdicts: Sequence[AlarmVerdict], saved: str = "") -> str:
    """Return the error message for a run that these verdicts stop. `saved` says where the run was saved."""
    are_sets = [isinstance(verdict.record, ValidationRecord) for verdict in verdicts]
    actions = [action for action, is_set in (("on_increase", True), ("on_drop", False)) if is_set in are_sets]
    limits = [limit for limit, is_set in (("max_increase", True), ("max_drop", False)) if is_set in are_sets]
    messages = "; ".join(verdict.message for verdict in verdicts)
    action, limit = " and ".join(actions), " and ".join(limits)
    return f"stopped by {action}: {messages}{saved}; to continue, raise {limit} or patience, or set {action} to warn"


def _complete(record: Judged, state: _State) -> Judged:
    """Return the record with its baseline and its alarm."""
    marked = dataclasses.replace(
        record,
        base_step=state.base_step,
        alarm=state.beyond_since is not None,
        above_since_step=state.beyond_since,
    )
    if isinstance(marked, ValidationRecord):
        return dataclasses.replace(marked, base_loss=state.base)
    return dataclasses.replace(marked, base_score=state.base)


def _count_left(step: int, state: _State, limits: AlarmLimits) -> int:
    """Return the remaining patience in steps or validations, which is 0 or less when it has run out."""
    assert state.beyond_since is not None
    if limits.patience_validations:
        return limits.patience_validations - state.num_later
    return limits.patience_steps - (step - state.beyond_since)


def _name(record: Judged) -> str:
    return f"{'validation set' if isinstance(record, ValidationRecord) else 'task'} {record.name}"


def _describe_alarm(record: Judged, value: float, state: _State, limits: AlarmLimits) -> str:
    quantity, key = ("loss", "max_increase") if isinstance(record, ValidationRecord) else (record.metric, "max_drop")
    return (
        f"forgetting: {_name(record)} at step {record.step} has {quantity} {value:.4f}, {value - state.base:+.4f} from "
        f"its baseline {state.base:.4f} at step {state.base_step} ({key} {limits.max_change:g})"
    )


def _describe_patience(step: int, state: _State, limits: AlarmLimits) -> str:
    if not limits.has_patience:
        return ""
    patience, unit = (
        (limits.patience_validations, "validations")
        if limits.patience_validations
        else (limits.patience_steps, "steps")
    )
    since = f", beyond its limit since step {state.beyond_since}"
    left = _count_left(step, state, limits)
    rest = f"{left} of {patience} {unit} of patience left" if left > 0 else f"patience of {patience} {unit} used up"
    return f"{since}; {rest}"


def _describe_recovery(record: Judged, value: float) -> str:
    if isinstance(record, ValidationRecord):
        return f"{_name(record)} is below its alarm level again at step {record.step}: {value:.4f}"
    return f"{_name(record)} is within its limit again at step {record.step}: {record.metric} {value:.4f}"
