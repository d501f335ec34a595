"""Reads a run folder's files: `metrics.jsonl` (all records, or a resumed run's history) and `run.json`."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascend_cpt.errors import DataError
from ascend_cpt.monitor.record import check_run_info, parse_record
from ascend_cpt.strict_json import JsonError, read_json_object

_HEAD = re.compile(rb'\{"kind": "(\w+)", "step": (\d{1,18}), ')


@dataclass(frozen=True, kw_only=True)
class History:
    """The history that a resumed run needs: the last steps, all validations and task scores, and the skipped steps."""

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
    """Return the `RunInfo` values in `run.json`, or an empty result if an older version wrote no such file.

    Raises:
        DataError: the file is damaged.
    """
    path = run_dir / RUN_INFO_NAME
    if not path.is_file():
        return {}
    try:
        values = read_json_object(path)
        check_run_info(values)
        return values
    except (OSError, JsonError) as error:
        raise DataError(f"{path}: {error}; remove the file to continue without it") from None


def extend_layouts(recorded: Sequence[Mapping[str, int]], step: int, sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Return the layouts of a run that continues after `step` steps in a layout with these sizes.

    Args:
        recorded: `layouts` in `run.json`. Later ones are dropped, because the run was set back to an earlier step.
        step: Number of steps that are already trained.
        sizes: The parallel sizes from now on. A size that an earlier version did not record is 1.
    """
    layouts = [dict(layout) for layout in recorded if layout.get("step", 0) < step]
    if not layouts or any(layouts[-1].get(key, 1) != size for key, size in sizes.items()):
        layouts.append({"step": step, **sizes})
    return layouts


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a `metrics.jsonl`. Validations and scores, including tools/evaluate.py's, come last.

    A last line truncated by a crash is ignored.

    Raises:
        DataError: any other line is not a valid record.
    """
    judged: list[dict[str, Any]] = []
    for record in _read_records(path):
        if record["kind"] in JUDGED_KINDS:
            judged.append(record)
        else:
            yield record
    yield from add_evaluations(judged, path.parent)


def add_evaluations(judged: Iterable[dict[str, Any]], run_dir: Path) -> list[dict[str, Any]]:
    """Add missing records from tools/evaluate.py to a run's validations and scores, in step order."""
    found = list(judged)
    seen = {(record["kind"], record["step"], record["name"]) for record in found}
    # A rewritten checkpoint is evaluated again, so a step's last record belongs to the newer checkpoint.
    evaluated = {(record["kind"], record["step"], record["name"]): record for record in read_evaluations(run_dir)}
    found += [record for key, record in evaluated.items() if key not in seen]
    return sorted(found, key=lambda record: int(record["step"]))


def read_evaluations(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield tools/evaluate.py's records in the order in which they were written.

    Raises:
        DataError: a line other than a truncated last one is not a valid record.
    """
    return (record for record in _read_records(run_dir / EVALUATIONS_NAME) if record["kind"] in JUDGED_KINDS)


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in _iter_lines(path):
        yield parse_line(path, number, line)


def _iter_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number (from 1) and content of every complete line. A crash may have cut the last one short."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    yield number, line
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Return the values of line `number` (from 1) of a file; see `parse_record`.

    Raises:
        DataError: the line is not a valid record.
    """
    try:
        return parse_record(line)
    except JsonError as error:
        raise DataError(f"{path}:{number}: not a valid record ({error}); correct or remove this line") from None


def read_history(path: Path, resume_step: int, window_steps: int) -> History:
    """Read the records up to `resume_step`, but only the last `window_steps` step records.

    Raises:
        DataError: a line that is needed is damaged.
    """
    steps: deque[tuple[int, bytes]] = deque(maxlen=window_steps)
    validations: list[dict[str, Any]] = []
    tasks: list[dict[str, Any]] = []
    num_skipped = 0
    account: dict[str, Any] | None = None
    for number, kind, line in iter_heads(path, resume_step):
        if kind == "step":
            steps.append((number, line))
            num_skipped += b'"skipped": "' in line and b'"skipped": ""' not in line
        elif kind == "validation":
            validations.append(parse_line(path, number, line))
        elif kind == "task":
            tasks.append(parse_line(path, number, line))
        elif kind == "data":
            account = parse_line(path, number, line)
    return History(
        steps=[parse_line(path, number, line) for number, line in steps],
        validations=validations,
        num_skipped=num_skipped,
        account=account,
        tasks=tasks,
    )


def read_values(path: Path, kind: str, name: str) -> dict[int, float]:
    """Return step → recorded value for a validation set or task, such that lower is better.

    Args:
        path: The `metrics.jsonl`.
        kind: `validation` (the loss) or `task` (the score, negated if a higher score is better).
        name: Name of the set or task.

    NaN and infinite values are left out.

    Raises:
        DataError: a line is damaged.
    """
    values: dict[int, float] = {}
    for number, line_kind, line in iter_heads(path):
        if line_kind != kind:
            continue
        record = parse_line(path, number, line)
        if record["name"] != name:
            continue
        value = float(record["loss"] if kind == "validation" else record["score"])
        values[int(record["step"])] = -value if record.get("higher_is_better") else value
    return {step: value for step, value in values.items() if math.isfinite(value)}


def read_lines(path: Path, last_step: int | None = None) -> Iterator[tuple[str, str]]:
    """Yield the kind and text of every complete line up to `last_step`, without parsing the values of millions.

    Raises:
        DataError: a line does not begin and end as a record.
    """
    for number, kind, line in iter_heads(path, last_step):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{path}:{number}: not a valid record (not UTF-8); correct or remove this line") from None
        yield kind, text


def iter_heads(path: Path, last_step: int | None = None) -> Iterator[tuple[int, str, bytes]]:
    """Yield the number, kind and content of each complete line up to `last_step`.

    After a record beyond `last_step`, damaged lines are ignored because a resumed run rewrites everything that follows.
    """
    is_beyond = False
    for number, line in _iter_lines(path):
        head = _HEAD.match(line)
        if head is None or not line.endswith(b"}\n"):
            if is_beyond:
                continue
            raise DataError(f"{path}:{number}: not a valid record; correct or remove this line")
        if last_step is not None and int(head[2]) > last_step:
            is_beyond = True
        else:
            yield number, head[1].decode("ascii"), line
