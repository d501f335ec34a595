"""Reads a report's data from a run folder, and from then on only what was added."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.errors import DataError
from ascend_cpt.monitor.goodput.account import Goodput, compute_goodput
from ascend_cpt.monitor.goodput.restarts import Restart, find_restarts
from ascend_cpt.monitor.goodput.timeline import FILE_NAME, read_timeline
from ascend_cpt.monitor.history import (
    EVALUATIONS_NAME,
    JUDGED_KINDS,
    METRICS_NAME,
    RUN_INFO_NAME,
    add_evaluations,
    read_run_info,
)
from ascend_cpt.monitor.record import parse_record
from ascend_cpt.monitor.report.curves import Floats
from ascend_cpt.monitor.report.step_columns import StepColumns, check_names, parse_object
from ascend_cpt.monitor.summary import collect_by_name, describe_slow_ranks
from ascend_cpt.terminal_text import strip_controls

CHUNK_BYTES = 2 << 20
FEW_LINES = 500
"""Read one by one if one of them is unusual."""


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
    restarts: Sequence[Restart] = ()
    nodes: Sequence[Mapping[str, Any]] = ()
    """A record for each launch of a job that can continue without lost nodes."""
    slow_ranks: Sequence[str] = ()
    """A line for each rank that was slow in the last window or in several windows."""


class NoSteps(DataError):
    """The run has not finished its first step."""


def check_run_folder(run_dir: Path) -> None:
    """Raise DataError if `run_dir` is not the folder of a run."""
    if not (run_dir / METRICS_NAME).is_file():
        raise DataError(f"{run_dir}: not a run folder ({METRICS_NAME} is missing); give the folder of a run")


class RunReader:
    """Reads a run folder. A second call of `read` parses only the lines that were added since the first one."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._path = run_dir, run_dir / METRICS_NAME
        self._forget()

    def _forget(self) -> None:
        self._inode, self._offset, self._num_lines = -1, 0, 0
        self._steps = StepColumns()
        self._judged: list[dict[str, Any]] = []
        self._nodes: list[dict[str, Any]] = []
        self._ranks: list[dict[str, Any]] = []
        self._account: Mapping[str, Any] | None = None
        self._experts: Mapping[str, Any] | None = None

    def find_version(self) -> tuple[tuple[int, int, int], ...]:
        """Return a value that changes whenever a file that the report is made from does."""
        paths = [self._run_dir / name for name in (METRICS_NAME, EVALUATIONS_NAME, FILE_NAME, RUN_INFO_NAME)]
        stats = [path.stat() for path in paths if path.is_file()]
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)

    def read(self) -> RunData:
        """Return the run's data.

        Raises:
            NoSteps: there are no steps yet.
            DataError: when the folder contains no run, or a record before the last line is damaged.
        """
        check_run_folder(self._run_dir)
        try:
            self._read_new_lines()
        except DataError as error:
            self._forget()
            raise DataError(str(error).replace(METRICS_NAME, str(self._path), 1)) from None
        columns = self._steps.join()
        if not len(columns["step"]):
            raise NoSteps(f"{self._path}: has no steps yet; wait for the first step of the run")
        records = [_convert_judged(record) for record in add_evaluations(self._judged, self._run_dir)]
        timeline = read_timeline(self._run_dir / FILE_NAME)
        return RunData(
            name=strip_controls(self._run_dir.resolve().name),
            columns=columns,
            skipped=self._steps.skipped,
            validation=collect_by_name(records, "validation"),
            tasks=collect_by_name(records, "task"),
            account=self._account,
            info=read_run_info(self._run_dir),
            goodput=compute_goodput(timeline),
            restarts=find_restarts(timeline),
            nodes=tuple(self._nodes),
            slow_ranks=describe_slow_ranks(self._ranks),
            experts=self._experts,
        )

    def _read_new_lines(self) -> None:
        """Add the whole lines after the last ones read. A line without an end may be unfinished and waits."""
        with self._path.open("rb") as file:
            stat = self._path.stat()
            # A launch that resumes the run replaces the file.
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._forget()
                self._inode = stat.st_ino
            file.seek(self._offset)
            while chunk := file.read(CHUNK_BYTES) + file.readline():
                whole = chunk[: chunk.rfind(b"\n") + 1]
                if whole:
                    self._num_lines += self._add_chunk(whole)
                    self._offset += len(whole)
                if len(whole) < len(chunk):
                    break

    def _add_chunk(self, chunk: bytes, first: int = 0) -> int:
        """Add whole lines, the first of which is `first` lines after the last chunk, and return their number.

        The step records are added at once. One value that is not a number makes that impossible; it is then tried again
        with each half of the lines, and a few lines are added one by one.
        """
        added = self._steps.add_lines(chunk)
        if added is not None:
            num_lines, others = added
            for number, line in others:
                self._add(first + number, line)
            return num_lines
        num_lines = chunk.count(b"\n")
        if num_lines <= FEW_LINES:
            records = [self._add(first + number, line) for number, line in enumerate(chunk.split(b"\n")[:-1])]
            self._steps.add_records([record for record in records if record is not None])
        else:
            middle = chunk.index(b"\n", len(chunk) // 2) + 1
            num_added = self._add_chunk(chunk[:middle], first)
            self._add_chunk(chunk[middle:], first + num_added)
        return num_lines

    def _add(self, number: int, line: bytes) -> dict[str, Any] | None:
        """Add a record that is not a step, or return a step record. `number` counts from the chunk's first line."""
        try:
            record = parse_object(line)
            if record["kind"] == "step":
                return check_names(record)
            if record["kind"] in JUDGED_KINDS:
                self._judged.append(parse_record(line))
            elif record["kind"] == "nodes":
                self._nodes.append(parse_record(line))
            elif record["kind"] == "ranks":
                self._ranks.append(parse_record(line))
            elif record["kind"] == "data":
                self._account = parse_record(line)
            elif record["kind"] == "experts":
                self._experts = parse_record(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            where = self._num_lines + number + 1
            raise DataError(f"{METRICS_NAME}: line {where} is not a valid record; correct or remove it") from None
        return None


def load_runs(run_dirs: Sequence[Path]) -> list[RunData]:
    """Read run folders, several at the same time; see `RunReader.read`."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(load_run, run_dirs))


def load_run(run_dir: Path) -> RunData:
    """Read a run folder once; see `RunReader.read`."""
    return RunReader(run_dir).read()


def _convert_judged(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a validation or task score with NaN and infinity, which are recorded as text, converted to numbers."""
    values: dict[str, Any] = {**record, "step": int(record["step"])}
    if record["kind"] == "validation":
        return {**values, "loss": float(record["loss"])}
    scores = {str(key): float(value) for key, value in record["values"].items()}
    return {**values, "score": float(record["score"]), "metric": str(record["metric"]), "values": scores}
