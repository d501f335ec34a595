"""Sinks for TensorBoard, W&B and SwanLab."""

from __future__ import annotations

import importlib
import importlib.util
import math
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ascend_cpt.files import write_text
from ascend_cpt.monitor.record import Record, to_scalars
from ascend_cpt.monitor.sinks import Sink

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "swanlab": "swanlab"}
FLUSH_S = 10


class TensorBoardSink:
    """Writes event files to `<run>/tensorboard`; steps repeated after a resume replace the earlier ones."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        from tensorboardX import SummaryWriter
        from tensorboardX.proto.summary_pb2 import Summary

        self._summary = Summary
        purge_step = resume_step + 1 if resume_step else None
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step, flush_secs=FLUSH_S)

    def write(self, record: Record) -> None:
        """Write all numbers of a record as one event: ten times cheaper than one event per number."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in to_scalars(record).items()]
        self._writer.file_writer.add_summary(self._summary(value=values), record.step)

    def close(self) -> None:
        """Flush and close the writer."""
        self._writer.close()


class ServiceSink:
    """Logs to a run of a tracking service; `wandb` and `swanlab` have the same interface."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, record: Record) -> None:
        """Log the finite numbers of a record."""
        values = {tag: value for tag, value in to_scalars(record).items() if math.isfinite(value)}
        self._run.log(values, step=record.step)

    def close(self) -> None:
        """Finish the run at the service."""
        self._run.finish()


class WandbSink(ServiceSink):
    """W&B, configured by its environment variables (`WANDB_MODE=offline`, API key)."""

    def __init__(self, run_dir: Path, resume_step: int, *, project: str, config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        super().__init__(
            wandb.init(
                project=project,
                name=run_dir.name,
                dir=str(run_dir),
                id=choose_tracking_id(run_dir / ".wandb_id", resume_step),
                resume="allow",
                config=dict(config),
                settings=wandb.Settings(console="off"),
            )
        )


class SwanlabSink(ServiceSink):
    """SwanLab, configured by its environment variables (`SWANLAB_MODE=offline`, API key)."""

    def __init__(self, run_dir: Path, resume_step: int, *, project: str, config: Mapping[str, Any]) -> None:
        swanlab = importlib.import_module("swanlab")
        super().__init__(
            swanlab.init(
                project=project,
                name=run_dir.name,
                log_dir=str(run_dir / "swanlab"),
                id=choose_tracking_id(run_dir / ".swanlab_id", resume_step),
                resume="allow",
                config=dict(config),
            )
        )


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
    """Open the named sinks; one that cannot be opened is skipped with a warning."""
    sinks: list[Sink] = []
    for name in names:
        try:
            if name == "tensorboard":
                sinks.append(TensorBoardSink(run_dir, resume_step))
            else:
                service = {"wandb": WandbSink, "swanlab": SwanlabSink}[name]
                sinks.append(service(run_dir, resume_step, project=project, config=config))
        except Exception as error:
            warn(f"{name} cannot be used in this launch: {error!r}")
    return sinks


def choose_tracking_id(path: Path, resume_step: int) -> str:
    """Return the run's id at a service: the one stored in `path` when a run resumes, otherwise a new one."""
    if resume_step and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    tracking_id = uuid.uuid4().hex[:21]
    write_text(path, tracking_id + "\n")
    return tracking_id
