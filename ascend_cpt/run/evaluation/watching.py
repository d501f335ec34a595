"""Follows the checkpoints of a run: which are to be evaluated, and what is recorded about them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ascend_cpt.errors import CheckpointError
from ascend_cpt.files import write_text
from ascend_cpt.locks import take_lock
from ascend_cpt.monitor.history import EVALUATIONS_NAME, JUDGED_KINDS, METRICS_NAME, read_metrics
from ascend_cpt.monitor.record import KINDS, Judged, to_values
from ascend_cpt.run.evaluation.nodes import RunFolders

LOCK_NAME = ".evaluate.lock"
STOP_NAME = "stop_requested.json"
"""Written into the run folder to stop its training after the current step."""


@contextmanager
def hold_watch_lock(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a run's evaluation until the block or the process ends.

    Raises:
        CheckpointError: when another process is evaluating the run.
    """
    descriptor = os.open(run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not take_lock(descriptor, run_dir / LOCK_NAME, risk="do not evaluate this run a second time"):
            raise CheckpointError(f"{run_dir}: another process is already evaluating this run; stop one of them")
        yield
    finally:
        os.close(descriptor)


def list_pending(run: RunFolders, names: Collection[tuple[str, str]]) -> list[int]:
    """Return the steps of complete checkpoints that lack a record of one of the `names` (kind, name), in order."""
    recorded = _list_recorded(run.main)
    return [step for step in run.list_steps() if any((step, *name) not in recorded for name in names)]


def drop_recorded(run_dir: Path, records: Iterable[Judged]) -> list[Judged]:
    """Return the records that the run does not have yet: with a new set the other ones are evaluated again."""
    recorded = _list_recorded(run_dir)
    return [record for record in records if (record.step, KINDS[type(record)], record.name) not in recorded]


def _list_recorded(run_dir: Path) -> set[tuple[int, str, str]]:
    """Return step, kind and name of every validation and score."""
    return {
        (int(record["step"]), record["kind"], record["name"])
        for record in read_metrics(run_dir / METRICS_NAME)
        if record["kind"] in JUDGED_KINDS
    }


def append_records(run_dir: Path, records: Sequence[Judged]) -> None:
    """Add the records of one checkpoint to the run's evaluations.jsonl, all or none."""
    path = run_dir / EVALUATIONS_NAME
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = "".join(json.dumps(to_values(record)) + "\n" for record in records)
    write_text(path, before + lines)


def request_stop(run_dir: Path, message: str) -> None:
    """Ask the training to save and stop after its current step."""
    write_text(run_dir / STOP_NAME, json.dumps({"message": message}) + "\n")


def take_stop_request(run_dir: Path) -> str | None:
    """Return the message of a stop request, or None."""
    try:
        return str(json.loads((run_dir / STOP_NAME).read_text(encoding="utf-8"))["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
