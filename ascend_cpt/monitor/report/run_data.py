"""What a report shows of a run, read from its folder and thinned out for drawing."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ascend_cpt.errors import DataError

METRICS_NAME, RUN_INFO_NAME = "metrics.jsonl", "run.json"
NUM_BUCKETS = 500
"""A curve is drawn with at most two points in each: its lowest and its highest."""
SMOOTH_SHARE = 50
"""The smooth curve is the mean over a fiftieth of the run."""

Floats = NDArray[np.float64]
# Columns of the step records. Optional: a record of an older version, or of a device that does not know, lacks them.
NEEDED = ("step", "total_steps", "tokens", "loss", "learning_rate", "tokens_per_s", "step_time_s")
OPTIONAL = ("grad_norm", "data_wait_s", "mfu", "num_skipped")


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run as it was recorded: columns of the steps by name, validations by set, the last data account, `run.json`."""

    name: str
    columns: Mapping[str, Floats]
    skipped: Mapping[int, str]
    """Step → why it was left out."""
    validation: Mapping[str, Sequence[Mapping[str, Any]]]
    account: Mapping[str, Any] | None
    info: Mapping[str, Any]


def load_run(run_dir: Path) -> RunData:
    """Read a run folder.

    Raises:
        DataError: when it holds no run, or one whose records are damaged before the last line.
    """
    path = run_dir / METRICS_NAME
    if not path.is_file():
        raise DataError(f"{run_dir}: holds no run ({METRICS_NAME} is missing); give the folder of a run")
    names = (*NEEDED, *OPTIONAL)
    rows: list[tuple[Any, ...]] = []
    skipped: dict[int, str] = {}
    validation: dict[str, list[Mapping[str, Any]]] = {}
    account: Mapping[str, Any] | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = orjson.loads(line)
                kind = record["kind"]
                if kind == "step":
                    rows.append(tuple([record[name] for name in NEEDED] + [record.get(name) for name in OPTIONAL]))
                    if record.get("skipped"):
                        skipped[int(record["step"])] = str(record["skipped"])
                elif kind == "validation":
                    validation.setdefault(record["name"], []).append(
                        {**record, "step": int(record["step"]), "loss": float(record["loss"])}
                    )
                elif kind == "data":
                    account = {"tokens": dict(record["tokens"]), "epochs": dict(record["epochs"])}
            except (ValueError, KeyError, TypeError, AttributeError):
                if not line.endswith(b"\n"):
                    break  # the last line, cut short by a crash
                raise DataError(f"{path}: line {number} is no record of a run; mend or remove it") from None
    if not rows:
        raise DataError(f"{path}: has no step yet; let the run take its first step")
    return RunData(
        name=run_dir.resolve().name,
        columns={name: _to_floats(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)},
        skipped=skipped,
        validation=validation,
        account=account,
        info=_read_info(run_dir / RUN_INFO_NAME),
    )


def _to_floats(column: Iterable[Any]) -> Floats:
    """Return numbers, also those that JSON has as text (`nan`, `inf`); None is NaN."""
    try:
        return np.array([math.nan if value is None else float(value) for value in column])
    except (ValueError, TypeError) as error:
        raise DataError(f"{METRICS_NAME}: holds a step with a value that is no number ({error})") from None


def _read_info(path: Path) -> Mapping[str, Any]:
    """Return what `run.json` says; nothing when there is none: a run of an older version can be shown without."""
    if not path.is_file():
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is no JSON ({error}); remove it to see the report without what it tells") from None
    if not isinstance(info, dict):
        raise DataError(f"{path}: holds no description of a run; remove it to see the report without")
    return info


def thin_out(values: Floats, num_buckets: int = NUM_BUCKETS) -> NDArray[np.int64]:
    """Return the indices to draw: first, last, and the lowest and highest of each bucket, so that no spike is lost.

    A bucket without a finite value keeps one: the curve has a gap there.
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
    """Return the mean over the steps around each step, and how many; values that are not finite do not count."""
    window = max(1, len(values) // SMOOTH_SHARE)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    middles = np.arange(len(values))
    starts, stops = np.maximum(middles - window // 2, 0), np.minimum(middles + window // 2 + 1, len(values))
    totals, numbers = sums[stops] - sums[starts], counts[stops] - counts[starts]
    return np.where(numbers > 0, totals / np.maximum(numbers, 1), np.nan), window // 2 * 2 + 1


def make_curve(steps: Floats, values: Floats) -> dict[str, list[float | None]] | None:
    """Return the points `x`, `y` to draw, None where there is no value at all; a gap is a `y` of None."""
    if not np.isfinite(values).any():
        return None
    chosen = thin_out(values)
    return {"x": [round_digits(x) for x in steps[chosen]], "y": [round_digits(y) for y in values[chosen]]}


def round_digits(value: float) -> float | None:
    """Return a number with six digits, which is what a picture shows; None for what is not finite."""
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() else rounded
