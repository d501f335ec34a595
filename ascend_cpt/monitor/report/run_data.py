"""Reads a report's data from a run folder and downsamples it for plotting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ascend_cpt.errors import DataError
from ascend_cpt.monitor.goodput.account import Goodput, compute_goodput
from ascend_cpt.monitor.goodput.timeline import FILE_NAME, read_timeline
from ascend_cpt.monitor.history import JUDGED_KINDS, METRICS_NAME, add_evaluations, read_run_info
from ascend_cpt.monitor.record import parse_record
from ascend_cpt.monitor.summary import collect_by_name

NUM_BUCKETS = 500
"""A curve has at most two points per bucket: its minimum and its maximum."""
SMOOTH_SHARE = 50
"""The smoothed curve averages over 1/50 of the run."""

Floats = NDArray[np.float64]
# Columns of the step records. Optional ones may be None, or missing from older versions' records.
NEEDED = ("step", "total_steps", "tokens", "loss", "learning_rate", "tokens_per_s", "step_time_s")
OPTIONAL = ("grad_norm", "data_wait_s", "mfu", "tflops_per_device", "num_skipped")


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run's records: step columns, validations by set, scores by task, the last data account, and `run.json`."""

    name: str
    columns: Mapping[str, Floats]
    skipped: Mapping[int, str]
    """Step → why it was skipped."""
    validation: Mapping[str, Sequence[Mapping[str, Any]]]
    tasks: Mapping[str, Sequence[Mapping[str, Any]]]
    account: Mapping[str, Any] | None
    info: Mapping[str, Any]
    experts: Mapping[str, Any] | None = None
    """The last record of the experts' loads; None for dense models."""
    goodput: Goodput | None = None
    """None for a run without a timeline."""


def load_run(run_dir: Path) -> RunData:
    """Read a run folder.

    Raises:
        DataError: when the folder contains no run, or a record before the last line is damaged.
    """
    path = run_dir / METRICS_NAME
    if not path.is_file():
        raise DataError(f"{run_dir}: not a run folder ({METRICS_NAME} is missing); give the folder of a run")
    names = (*NEEDED, *OPTIONAL)
    rows: list[tuple[Any, ...]] = []
    skipped: dict[int, str] = {}
    judged: list[dict[str, Any]] = []
    account: Mapping[str, Any] | None = None
    experts: Mapping[str, Any] | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = orjson.loads(line)
                kind = record["kind"]
                if kind == "step":
                    rows.append(tuple([record[name] for name in NEEDED] + [record.get(name) for name in OPTIONAL]))
                    if record.get("skipped"):
                        skipped[int(record["step"])] = str(record["skipped"])
                elif kind in JUDGED_KINDS:
                    judged.append(parse_record(line))
                elif kind == "data":
                    account = parse_record(line)
                elif kind == "experts":
                    experts = parse_record(line)
            except (ValueError, KeyError, TypeError, AttributeError):
                if not line.endswith(b"\n"):
                    break  # last line, truncated by a crash
                raise DataError(f"{path}: line {number} is not a valid record; correct or remove it") from None
    if not rows:
        raise DataError(f"{path}: has no steps yet; wait for the first step of the run")
    records = [_convert_judged(record) for record in add_evaluations(judged, run_dir)]
    columns = {name: _to_floats(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    for name in ("step", "total_steps", "tokens"):
        if not (columns[name] > 0).all() or not np.isfinite(columns[name]).all():
            raise DataError(f"{path}: a step has a {name} that is not a positive number; correct or remove its line")
    return RunData(
        name=run_dir.resolve().name,
        columns=columns,
        skipped=skipped,
        validation=collect_by_name(records, "validation"),
        tasks=collect_by_name(records, "task"),
        account=account,
        experts=experts,
        info=read_run_info(run_dir),
        goodput=compute_goodput(read_timeline(run_dir / FILE_NAME)),
    )


def _convert_judged(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a validation or task score with NaN and infinity, which are recorded as text, converted to numbers."""
    values: dict[str, Any] = {**record, "step": int(record["step"])}
    if record["kind"] == "validation":
        return {**values, "loss": float(record["loss"])}
    scores = {str(key): float(value) for key, value in record["values"].items()}
    return {**values, "score": float(record["score"]), "metric": str(record["metric"]), "values": scores}


def _to_floats(column: Iterable[Any]) -> Floats:
    """Return a column as float64. Strings such as `nan` and `inf` are parsed, and None becomes NaN."""
    try:
        return np.array([math.nan if value is None else float(value) for value in column])
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{METRICS_NAME}: a step has a value that is not a number ({error}); correct or remove its line"
        ) from None


def downsample(values: Floats, num_buckets: int = NUM_BUCKETS) -> NDArray[np.int64]:
    """Return the indices to plot: the first, the last, and each bucket's minimum and maximum, so no spike is lost.

    A bucket with non-finite values also keeps one of them, shown as a gap in the curve.
    """
    count = len(values)
    if count <= 2 * num_buckets:
        return np.arange(count)
    edges = np.linspace(0, count, num_buckets + 1).astype(np.int64)
    kept = {0, count - 1}
    for start, stop in itertools.pairwise(edges):
        part = values[start:stop]
        finite = np.isfinite(part)
        if not finite.all():
            kept.add(int(start + np.argmin(finite)))
        if finite.any():
            kept.add(int(start + np.argmin(np.where(finite, part, np.inf))))
            kept.add(int(start + np.argmax(np.where(finite, part, -np.inf))))
    return np.array(sorted(kept), dtype=np.int64)


def smooth(values: Floats) -> tuple[Floats, int]:
    """Return the centered moving average and its window in steps, ignoring non-finite values."""
    window = max(1, len(values) // SMOOTH_SHARE)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    middles = np.arange(len(values))
    starts, stops = np.maximum(middles - window // 2, 0), np.minimum(middles + window // 2 + 1, len(values))
    totals, numbers = sums[stops] - sums[starts], counts[stops] - counts[starts]
    return np.where(numbers > 0, totals / np.maximum(numbers, 1), np.nan), window // 2 * 2 + 1


def make_curve(steps: Floats, values: Floats) -> dict[str, list[float | None]] | None:
    """Return the points `x`, `y` to plot, or None if no value is finite. In a gap, `y` is None."""
    if not np.isfinite(values).any():
        return None
    chosen = downsample(values)
    return {"x": [round_digits(x) for x in steps[chosen]], "y": [round_digits(y) for y in values[chosen]]}


def round_digits(value: float) -> float | None:
    """Return a number rounded to six significant digits, or None if it is not finite."""
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() else rounded
