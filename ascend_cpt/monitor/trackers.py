"""TensorBoard, W&B and SwanLab sinks for the training process and tools/evaluate.py."""

from __future__ import annotations

import importlib
import importlib.util
import math
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from ascend_cpt.files import write_text
from ascend_cpt.monitor.history import read_evaluations, read_run_info
from ascend_cpt.monitor.record import Record, read_judged, to_scalars
from ascend_cpt.monitor.sinks import Sink, SinkGroup

EVALUATE = "evaluate"
"""Names what tools/evaluate.py writes: `tensorboard/evaluate`, and the run `<run>-evaluate` of a tracking service."""
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "swanlab": "swanlab"}
FLUSH_S = 10


class TensorBoardSink:
    """Writes event files to `folder`. TensorBoard discards events already read from `purge_step` on."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from tensorboardX import SummaryWriter
        from tensorboardX.proto.summary_pb2 import Summary

        self._summary = Summary
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=FLUSH_S)

    def write(self, record: Record) -> None:
        """Write all numbers in a record as one event, which is ten times cheaper than one event per number."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in to_scalars(record).items()]
        self._writer.file_writer.add_summary(self._summary(value=values), record.step)

    def close(self) -> None:
        """Flush and close the writer."""
        self._writer.close()


class ServiceSink:
    """Logs to a tracking service's run. `wandb` and `swanlab` have the same interface."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, record: Record) -> None:
        """Log the finite numbers of a record."""
        values = {tag: value for tag, value in to_scalars(record).items() if math.isfinite(value)}
        self._run.log(values, step=record.step)

    def close(self) -> None:
        """Finish the service's run."""
        self._run.finish()


class WandbSink(ServiceSink):
    """W&B, configured by its environment variables (`WANDB_MODE=offline`, API key)."""

    def __init__(self, run_dir: Path, name: str, tracking_id: str, *, project: str, config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        super().__init__(
            wandb.init(
                project=project,
                name=name,
                dir=str(run_dir),
                id=tracking_id,
                resume="allow",
                config=dict(config),
                settings=wandb.Settings(console="off"),
            )
        )


class SwanlabSink(ServiceSink):
    """SwanLab, configured by its environment variables (`SWANLAB_MODE=offline`, API key)."""

    def __init__(self, run_dir: Path, name: str, tracking_id: str, *, project: str, config: Mapping[str, Any]) -> None:
        swanlab = importlib.import_module("swanlab")
        super().__init__(
            swanlab.init(
                project=project,
                name=name,
                log_dir=str(run_dir / "swanlab"),
                id=tracking_id,
                resume="allow",
                config=dict(config),
            )
        )


SERVICES: Mapping[str, Callable[..., Sink]] = {"wandb": WandbSink, "swanlab": SwanlabSink}


def is_installed(sink: str) -> bool:
    """Return whether a sink's package is installed, without importing it."""
    return importlib.util.find_spec(PACKAGES[sink]) is not None


def open_trackers(
    names: tuple[str, ...],
    run_dir: Path,
    *,
    resume_step: int,
    project: str,
    config: Mapping[str, Any],
    warn: Callable[[str], None],
) -> list[Sink]:
    """Open the named sinks. A sink that cannot be opened is skipped with a warning."""
    sinks: list[Sink] = []
    for name in names:
        try:
            if name == "tensorboard":
                sinks.append(TensorBoardSink(run_dir / "tensorboard", resume_step + 1 if resume_step else None))
            else:
                tracking_id = choose_tracking_id(run_dir / f".{name}_id", resume_step)
                sinks.append(SERVICES[name](run_dir, run_dir.name, tracking_id, project=project, config=config))
        except Exception as error:
            warn(_describe_failure(name, error))
    return sinks


class EvaluationTrackers:
    """Copies a run's evaluations.jsonl records to its trackers. Every record is shown once, even after a kill.

    The records get separate event files and runs. TensorBoard reads only the newest event file in a folder, so a second
    file would hide what the training process writes from then on. The services accept a run's records only from one
    process and in step order, but the last checkpoint is evaluated after the training process has ended.

    For TensorBoard, each start writes all records to a new event file that replaces the earlier ones, which are not
    deleted because an open TensorBoard would then not switch to the new file. For a service, the number of copied
    records is kept in the run folder.
    """

    def __init__(self, run_dir: Path, console: TextIO) -> None:
        self._run_dir, self._console = run_dir, console
        self._sinks: dict[str, SinkGroup] = {}
        self._num_copied: dict[str, int] = {}

    def update(self) -> None:
        """Copy the new records. A tracker that fails is skipped with one warning until the next start."""
        records = [read_judged(values) for values in read_evaluations(self._run_dir)]
        if not records:
            return
        info = read_run_info(self._run_dir)
        has_files = (self._run_dir / "tensorboard").is_dir()  # all that is known about runs by older versions
        default: dict[str, Any] = {"sinks": ["tensorboard"] if has_files else [], "project": "ascend_cpt"}
        settings = {**default, **info.get("trackers", {})}
        for name in settings["sinks"]:
            start = self._num_copied.setdefault(name, self._read_count(name))
            if start >= len(records):
                continue
            if name not in self._sinks:
                self._sinks[name] = self._open(name, settings["project"], info)
            sink = self._sinks[name]
            for record in records[start:]:
                sink.write(record)
            if sink:
                self._num_copied[name] = len(records)
                if name in SERVICES:
                    write_text(self._count_path(name), f"{len(records)}\n")

    def close(self) -> None:
        """Flush and close the trackers."""
        for sink in self._sinks.values():
            sink.close()

    def _open(self, name: str, project: str, config: Mapping[str, Any]) -> SinkGroup:
        try:
            if name == "tensorboard":
                folder = self._run_dir / "tensorboard" / EVALUATE
                return SinkGroup([TensorBoardSink(folder, 0)], self._console)
            run_name = f"{self._run_dir.name}-{EVALUATE}"
            tracking_id = choose_tracking_id(self._run_dir / f".{name}_{EVALUATE}_id", 1)
            sink = SERVICES[name](self._run_dir, run_name, tracking_id, project=project, config=config)
            return SinkGroup([sink], self._console)
        except Exception as error:
            nothing = SinkGroup([], self._console)
            nothing.warn(_describe_failure(name, error))
            return nothing

    def _count_path(self, name: str) -> Path:
        return self._run_dir / f".{name}_{EVALUATE}_count"

    def _read_count(self, name: str) -> int:
        path = self._count_path(name)
        return int(path.read_text(encoding="utf-8")) if name in SERVICES and path.is_file() else 0


def _describe_failure(name: str, error: Exception) -> str:
    return f"{name} cannot be used in this launch: {error!r}"


def choose_tracking_id(path: Path, resume_step: int) -> str:
    """Return the run's id at a service: the one stored in `path` if the run resumes, otherwise a new one."""
    if resume_step and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    tracking_id = uuid.uuid4().hex[:21]
    write_text(path, tracking_id + "\n")
    return tracking_id
