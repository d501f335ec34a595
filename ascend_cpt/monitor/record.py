"""The records of a run, as plain dataclasses."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypedDict

from ascend_cpt.monitor.experts.load import ExpertsRecord, to_expert_scalars
from ascend_cpt.monitor.goodput.nodes import NodesRecord
from ascend_cpt.monitor.goodput.slow_ranks import RanksRecord
from ascend_cpt.monitor.goodput.start import StartRecord
from ascend_cpt.strict_json import JsonError, parse_json, shorten


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step. `step` counts from 1. Rates are for the whole cluster unless the name says otherwise.

    Times exclude validation and saving. `skipped` says why the weights were not updated, and is empty if they were.
    """

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens: int
    """Tokens trained on since the start of the run."""
    step_time_s: float
    """From the end of the last step to the end of this one."""
    tokens_per_s: float
    """Mean over the last steps, without a launch's first step, which compiles."""
    tokens_per_s_per_device: float = 0.0
    tflops_per_device: float | None = None
    """Achieved model TFLOPS: tokens_per_s_per_device × training FLOPs per token / 10^12; None in old records."""
    mfu: float | None = None
    """Model FLOPs utilization, 0 to 1; None if the device's peak is unknown."""
    data_wait_s: float | None = None
    """Part of the step time in which the host waited for the batch; None in sink mode, where the device fetches it."""
    compute_s: float | None = None
    """Rest of the step time, until the loss was available; None in sink mode."""
    phase: str = ""
    skipped: str = ""
    num_skipped: int = 0
    """Skipped steps of the run so far."""
    extra_loss: float | None = None
    """The weighted losses of the routers, which are added to `loss` in training; None without experts."""
    peak_memory_bytes: int | None = None
    """Most memory that tensors have taken so far on the device of the reporting rank; None on a CPU."""


@dataclass(frozen=True, kw_only=True)
class ValidationRecord:
    """The mean loss (nats per token) over a named validation set's labels after `step` steps."""

    step: int
    name: str
    loss: float
    num_labels: int
    bits_per_byte: float | None = None
    """loss × tokens / (ln 2 × bytes of text), with tokens and bytes of the whole set."""
    base_loss: float | None = None
    """The set's first loss in this run, normally before the first step."""
    base_step: int | None = None
    alarm: bool = False
    """Whether the loss is above the base by more than `max_increase`."""
    above_since_step: int | None = None
    """With an alarm: the step at which the alarm began, the first of consecutive validations with an alarm."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """A named task's score after `step` steps."""

    step: int
    name: str
    metric: str
    """The metric that the alarm watches."""
    score: float
    """Its value."""
    num_items: int
    """Number of questions or documents."""
    values: dict[str, float]
    """All metrics of the task and, for a needle task, each of them by cell, as `acc/<length>/<depth>`."""
    higher_is_better: bool = True
    base_score: float | None = None
    """The task's first score in this run, normally before the first step."""
    base_step: int | None = None
    alarm: bool = False
    """Whether the score is worse than the base by more than `max_drop`."""
    above_since_step: int | None = None
    """With an alarm: the step at which the alarm began, the first of consecutive validations with an alarm."""


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The data that the run has trained on after `step` steps, computed exactly from the row order."""

    step: int
    tokens: dict[str, dict[str, int]]
    """Phase → source → tokens."""
    epochs: dict[str, float]
    """Epochs of each source."""


Judged = ValidationRecord | TaskRecord
"""Records with a baseline and an alarm."""
Record = (
    StepRecord | ValidationRecord | TaskRecord | DataRecord | StartRecord | RanksRecord | NodesRecord | ExpertsRecord
)
KINDS: dict[type, str] = {
    StepRecord: "step",
    ValidationRecord: "validation",
    TaskRecord: "task",
    DataRecord: "data",
    StartRecord: "start",
    RanksRecord: "ranks",
    NodesRecord: "nodes",
    ExpertsRecord: "experts",
}


def to_values(record: Record) -> dict[str, Any]:
    """Return a record as JSON values, kind and step first. NaN and infinity, which JSON lacks, become strings."""
    values: dict[str, Any] = {"kind": KINDS[type(record)], **vars(record)}
    if isinstance(record, ValidationRecord):
        values["perplexity"] = record.perplexity
    if isinstance(record, TaskRecord):
        values["values"] = {metric: to_json_number(value) for metric, value in record.values.items()}
    return {key: to_json_number(value) for key, value in values.items()}


_MAX_INTEGER = 2**63 - 1
_NOT_FINITE = ("nan", "inf", "-inf")
_CLASSES = {kind: cls for cls, kind in KINDS.items()}


def parse_record(line: bytes) -> dict[str, Any]:
    """Return a record's values from a `metrics.jsonl` or `evaluations.jsonl` line, after checking their types.

    Values and kinds that this version does not know are kept as they are.

    Raises:
        JsonError: the line is not a JSON object with `kind` and `step`, or a value is missing or has the wrong type.
    """
    values = parse_json(line)
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        raise JsonError("is not a record with a `kind`")
    cls = _CLASSES.get(values["kind"])
    if cls is None:
        _check_value(int, values.get("step"), "step")
        return values
    for name, hint, is_required in _list_fields(cls):
        if name in values:
            _check_value(hint, values[name], name)
        elif is_required:
            raise JsonError(f"{name}: missing")
    return values


@cache
def _list_fields(cls: type) -> list[tuple[str, Any, bool]]:
    """Return each record field's name and type, and whether the field is required."""
    hints = typing.get_type_hints(cls)
    return [
        (item.name, hints[item.name], item.default is dataclasses.MISSING and item.name not in _ADDED)
        for item in dataclasses.fields(cls)
    ]


# Missing from the first versions' records, and not needed to read them.
_ADDED = ("num_labels", "learning_rate", "grad_norm", "tokens_per_s", "step_time_s")


def _check_value(hint: Any, value: object, name: str) -> None:
    """Raise JsonError if a JSON value does not have the type of its record field or `run.json` entry."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (value is None and type(None) in arguments):
        return
    if type(None) in arguments:
        hint = next(argument for argument in arguments if argument is not type(None))
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if typing.is_typeddict(hint):
        arguments, origin = (str, Any), dict
    kind = origin or hint
    if kind is float:
        is_right = (isinstance(value, int) and abs(value) <= _MAX_INTEGER) or isinstance(value, float)
        is_right = (is_right and not isinstance(value, bool)) or value in _NOT_FINITE
    elif kind is int:
        is_right = type(value) is int and 0 <= value <= _MAX_INTEGER
    else:
        is_right = type(value) is kind
    if not is_right:
        raise JsonError(f"{name}: expected {kind.__name__}, got {shorten(value)}")
    if typing.is_typeddict(hint):
        _check_names(hint, value, name)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_value(arguments[1], item, f"{name}[{shorten(key)}]")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_value(arguments[0], item, f"{name}[{index}]")


def _check_names(hint: Any, value: Any, name: str) -> None:
    """Check the values of a TypedDict; other names are ignored."""
    for key, inner in typing.get_type_hints(hint).items():
        if key in value:
            _check_value(inner, value[key], f"{name}.{key}")
        elif key in hint.__required_keys__:
            raise JsonError(f"{name}.{key}: missing")


def read_judged(values: Mapping[str, Any]) -> Judged:
    """Return a validation or task score from its JSON values, without the baseline and alarm."""
    step, name = int(values["step"]), str(values["name"])
    if values.get("kind") != "task":
        labels = int(values.get("num_labels", 0))
        bits = values.get("bits_per_byte")
        return ValidationRecord(
            step=step,
            name=name,
            loss=float(values["loss"]),
            num_labels=labels,
            bits_per_byte=None if bits is None else float(bits),
        )
    return TaskRecord(
        step=step,
        name=name,
        metric=str(values["metric"]),
        score=float(values["score"]),
        num_items=int(values["num_items"]),
        values={str(metric): float(value) for metric, value in values["values"].items()},
        higher_is_better=bool(values.get("higher_is_better", True)),
    )


def to_scalars(record: Record) -> dict[str, float]:
    """Return the values that can be plotted against steps, as `group/name` → number."""
    if isinstance(record, ValidationRecord):
        scalars = {"loss": record.loss, "perplexity": record.perplexity, "bits_per_byte": record.bits_per_byte}
        return {f"validation/{record.name}/{name}": value for name, value in scalars.items() if value is not None}
    if isinstance(record, TaskRecord):
        scores = {**record.values, record.metric: record.score}
        scores = {metric: value for metric, value in scores.items() if not is_cell(metric)}
        return {f"task/{record.name}/{metric}": value for metric, value in scores.items()}
    if isinstance(record, DataRecord):
        totals: dict[str, float] = {}
        for by_source in record.tokens.values():
            for source, tokens in by_source.items():
                totals[f"tokens/{source}"] = totals.get(f"tokens/{source}", 0) + tokens
        return totals | {f"epochs/{source}": epochs for source, epochs in record.epochs.items()}
    if isinstance(record, RanksRecord):
        return {"ranks/slow": float(len({one["rank"] for one in record.slow})), "ranks/computing_s": record.computing_s}
    if isinstance(record, NodesRecord):
        return {"nodes/nodes": float(record.num_nodes), "nodes/devices": float(record.num_devices)}
    if isinstance(record, ExpertsRecord):
        return to_expert_scalars(record)
    if isinstance(record, StartRecord):
        return {f"start/{name}": value for name, value in vars(record).items() if name != "step"}
    numbers = {
        "train/loss": record.loss,
        "train/learning_rate": record.learning_rate,
        "train/grad_norm": record.grad_norm,
        "train/extra_loss": record.extra_loss,
        "train/skipped": record.num_skipped,
        "speed/tokens_per_s": record.tokens_per_s,
        "speed/tokens_per_s_per_device": record.tokens_per_s_per_device,
        "speed/tflops_per_device": record.tflops_per_device,
        "speed/mfu": record.mfu,
        "speed/step_time_s": record.step_time_s,
        "speed/data_wait_s": record.data_wait_s,
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}


def is_cell(name: str) -> bool:
    """Return whether a task value is the score of one needle-task cell, `<metric>/<length>/<depth>`."""
    return name.count("/") == 2


def to_json_number(value: Any) -> Any:
    """Return the value, with NaN and infinity as strings."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Run information that a report needs besides the records, stored as `run.json` in the run folder."""

    name: str
    model: str
    """Short description of the model."""
    num_parameters: int
    num_devices: int
    device_name: str
    flops_per_token: float
    peak_flops: float | None
    """Of one device; None if unknown."""
    total_steps: int
    tokens_per_step: int
    phases: list[dict[str, Any]]
    """`name`, `first_step`, `stop_step` (from 0, excluded) and planned `tokens` by source."""
    sources: dict[str, dict[str, int]]
    """Source → `rows` and `tokens` of one epoch."""
    validation: dict[str, dict[str, Any]]
    """Set → `rows` used, `of_rows`, `max_increase`, `on_increase`."""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Task → `max_drop`, `on_drop`."""
    base: dict[str, Any] | None = None
    """The initial weights (`run/export/base_weights.py`); None if they were not recorded at the first step."""
    trackers: dict[str, Any] = field(default_factory=dict)
    """`sinks` and `project` of `cpt.monitor`, for the records of tools/evaluate.py."""
    nodes: list[str] = field(default_factory=list)
    """Host names of the last launch, in a job that can continue without lost nodes."""
    software: dict[str, str] = field(default_factory=dict)
    """Package → version, of the last launch."""
    layouts: list[dict[str, int]] = field(default_factory=list)
    """The parallel sizes by their names in `parallel_config`, and the `step` after which they are used."""
    loss_chunks: int = 1
    """`cpt.loss_chunks` of the last launch."""

    def to_values(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


class _Phase(TypedDict):
    name: str
    first_step: int
    stop_step: int
    tokens: dict[str, int]


class _Source(TypedDict):
    rows: int
    tokens: int


class _Limits(TypedDict, total=False):
    rows: int
    of_rows: int
    max_increase: float | None
    on_increase: str
    max_drop: float | None
    on_drop: str


class _Base(TypedDict, total=False):
    kind: str
    name: str
    step: int
    base_model: str | None


class _Trackers(TypedDict, total=False):
    sinks: list[str]
    project: str


_NESTED = {
    "phases": list[_Phase],
    "sources": dict[str, _Source],
    "validation": dict[str, _Limits],
    "tasks": dict[str, _Limits],
    "base": _Base | None,
    "trackers": _Trackers,
}
"""The types of the nested values of `RunInfo` in full."""


def check_run_info(values: Mapping[str, Any]) -> None:
    """Check the types of the values in `run.json`.

    Raises:
        JsonError: a value has the wrong type.
    """
    for name, hint in {**typing.get_type_hints(RunInfo), **_NESTED}.items():
        if name in values:  # runs by older versions lack some
            _check_value(hint, values[name], f"run.{name}")
