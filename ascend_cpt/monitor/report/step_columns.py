"""Parses the step records of `metrics.jsonl` into columns, a block of lines at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import orjson

from ascend_cpt.errors import DataError
from ascend_cpt.monitor.history import METRICS_NAME
from ascend_cpt.monitor.report.curves import Floats

# Columns of the step records. Optional ones may be None, or missing from older versions' records.
NEEDED = ("step", "total_steps", "tokens", "loss", "learning_rate", "tokens_per_s", "step_time_s")
OPTIONAL = ("grad_norm", "data_wait_s", "mfu", "tflops_per_device")
INTEGERS = ("step", "total_steps", "tokens")
NAMES = (*NEEDED, *OPTIONAL)
STEP_HEAD = b'{"kind": "step", '
"""How a step record begins when `JsonlSink` wrote it."""


class StepColumns:
    """The columns of all step records so far."""

    def __init__(self) -> None:
        self._blocks: list[dict[str, Floats]] = []
        self.skipped: dict[int, str] = {}
        """Step → why it was skipped."""

    def join(self) -> dict[str, Floats]:
        """Return the columns, without values if there are no steps yet."""
        if len(self._blocks) != 1:
            nothing = np.empty(0)
            joined = {name: np.concatenate([nothing, *(block[name] for block in self._blocks)]) for name in NAMES}
            self._blocks = [joined]
        return self._blocks[0]

    def add_lines(self, lines: bytes, num_lines: int) -> bool:
        """Add `num_lines` whole lines, all step records, at once.

        Return False, without adding anything, if a value is missing or is not a number, such as a loss of "nan". The
        caller then reads each line by itself. PyArrow's parser takes half the time of a line-by-line one, and uses all
        processors.
        """
        import pyarrow as pa
        from pyarrow import json as arrow_json

        fields = [(name, pa.int64() if name in INTEGERS else pa.float64()) for name in NAMES]
        schema = pa.schema([*fields, ("skipped", pa.string())])
        try:
            table = arrow_json.read_json(
                pa.BufferReader(lines),
                read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(lines)),
                parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
        except pa.ArrowInvalid:
            return False
        if table.num_rows != num_lines or any(table.column(name).null_count for name in NEEDED):
            return False
        columns = {name: np.asarray(table.column(name).to_numpy(), dtype=np.float64) for name in NAMES}
        _check_positive(columns)
        reasons = table.column("skipped")
        if any(reasons.unique().to_pylist()):
            texts = reasons.to_pylist()
            self.skipped |= {int(step): text for step, text in zip(columns["step"], texts, strict=True) if text}
        self._blocks.append(columns)
        return True

    def add_records(self, records: Sequence[dict[str, Any]]) -> None:
        """Add parsed step records, which `check_names` has checked.

        Raises:
            DataError: a value is not a number, or not a positive one where only that makes sense.
        """
        if not records:
            return
        columns = {name: _to_floats(record.get(name) for record in records) for name in NAMES}
        _check_positive(columns)
        for step, record in zip(columns["step"], records, strict=True):
            if record.get("skipped"):
                self.skipped[int(step)] = str(record["skipped"])
        self._blocks.append(columns)


def parse_object(line: bytes) -> dict[str, Any]:
    """Return a line's JSON object.

    Raises:
        ValueError: the line is not one, or has no `kind`.
    """
    record = orjson.loads(line)
    if not isinstance(record, dict) or "kind" not in record:
        raise ValueError("not a record")
    return record


def check_names(record: dict[str, Any]) -> dict[str, Any]:
    """Return a step record.

    Raises:
        KeyError: it lacks a value.
    """
    for name in NEEDED:
        record[name]
    return record


def _check_positive(columns: dict[str, Floats]) -> None:
    for name in ("step", "total_steps", "tokens"):
        if not (columns[name] > 0).all() or not np.isfinite(columns[name]).all():
            raise DataError(
                f"{METRICS_NAME}: a step has a {name} that is not a positive number; correct or remove its line"
            )


def _to_floats(column: Iterable[Any]) -> Floats:
    """Return a column as float64. Strings such as `nan` and `inf` are parsed, and None becomes NaN."""
    try:
        return np.array([math.nan if value is None else float(value) for value in column])
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{METRICS_NAME}: a step has a value that is not a number ({error}); correct or remove its line"
        ) from None
