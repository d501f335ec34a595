"""Reads the files of a run folder: `metrics.jsonl` (all records, or the history of a resumed run), `run.json`."""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascend_cpt.errors import DataError
from ascend_cpt.strict_json import JsonError, read_json_object

_HEAD = re.compile(r'\{"kind": "(\w+)", "step": (\d+), ')


@dataclass(frozen=True, kw_only=True)
class History:
    """The history that a resumed run needs: the last steps, all validations and task scores, the skipped steps."""

    steps: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    num_skipped: int
    account: dict[str, Any] | None = None
    """The last data account."""
    tasks: list[dict[str, Any]] = field(default_factory=list)


METRICS_NAME = "metrics.jsonl"
EVALUATIONS_NAME = "evaluations.jsonl"
"""Records of tools/evaluate.py. Separate from metrics.jsonl, so that each file has one writer, even on NFS."""
JUDGED_KINDS = ("validation", "task")
RUN_INFO_NAME = "run.json"


def read_run_info(run_dir: Path) -> dict[str, Any]:
    """Return the content of `run.json`, the values of `RunInfo`; empty without the file (runs of older versions).

    Raises:
        DataError: the file is damaged.
    """
    path = run_dir / RUN_INFO_NAME
    if not path.is_file():
        return {}
    try:
        return read_json_object(path)
    except JsonError as error:
        raise DataError(f"{path}: {error}; remove it to continue without it") from None


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a `metrics.jsonl`; validations and scores last, with those of tools/evaluate.py.

    A last line truncated by a crash is ignored.
    """
    judged: list[dict[str, Any]] = []
    for record in _read_records(path):
        if record["kind"] in JUDGED_KINDS:
            judged.append(record)
        else:
            yield record
    yield from add_evaluations(judged, path.parent)


def add_evaluations(judged: Iterable[dict[str, Any]], run_dir: Path) -> list[dict[str, Any]]:
    """Return validations and scores of a run with those of tools/evaluate.py that are missing, in step order."""
    found = list(judged)
    seen = {(record["kind"], record["step"], record["name"]) for record in found}
    for record in read_evaluations(run_dir):
        if (record["kind"], record["step"], record["name"]) not in seen:
            found.append(record)
    return sorted(found, key=lambda record: int(record["step"]))


def read_evaluations(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of tools/evaluate.py, in the order in which they were written."""
    return _read_records(run_dir / EVALUATIONS_NAME)


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                return
            yield record


def read_history(path: Path, resume_step: int, window_steps: int) -> History:
    """Read the records up to `resume_step`; of the steps only the last `window_steps`."""
    steps: deque[str] = deque(maxlen=window_steps)
    validations: list[dict[str, Any]] = []
    tasks: list[dict[str, Any]] = []
    num_skipped = 0
    account: dict[str, Any] | None = None
    for kind, line in read_lines(path, resume_step):
        if kind == "step":
            steps.append(line)
            num_skipped += '"skipped": "' in line and '"skipped": ""' not in line
        elif kind == "validation":
            validations.append(json.loads(line))
        elif kind == "task":
            tasks.append(json.loads(line))
        elif kind == "data":
            account = json.loads(line)
    return History(
        steps=[json.loads(line) for line in steps],
        validations=validations,
        num_skipped=num_skipped,
        account=account,
        tasks=tasks,
    )


def read_values(path: Path, kind: str, name: str) -> dict[int, float]:
    """Return step → recorded value of a validation set or a task, so that lower is better.

    Args:
        path: The `metrics.jsonl`.
        kind: `validation` (the loss) or `task` (the score, negated if a higher score is better).
        name: Name of the set or task.

    NaN and infinite values are left out.
    """
    values: dict[int, float] = {}
    for line_kind, line in read_lines(path):
        if line_kind != kind:
            continue
        record = json.loads(line)
        if record["name"] != name:
            continue
        value = float(record["loss"] if kind == "validation" else record["score"])
        values[int(record["step"])] = -value if record.get("higher_is_better") else value
    return {step: value for step, value in values.items() if math.isfinite(value)}


def read_lines(path: Path, last_step: int | None = None) -> Iterator[tuple[str, str]]:
    """Yield kind and text of every complete line, up to `last_step`. Values are not parsed: there may be millions."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            head = _HEAD.match(line)
            if head is None or not line.endswith("}\n"):
                return
            if last_step is None or int(head[2]) <= last_step:
                yield head[1], line
