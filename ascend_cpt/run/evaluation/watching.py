"""Follows a run: finds the checkpoints to evaluate, and records the results."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ascend_cpt.checkpoint.checksums import checksum_bytes
from ascend_cpt.checkpoint.state import STATE_NAME
from ascend_cpt.errors import CheckpointError
from ascend_cpt.files import write_text
from ascend_cpt.locks import take_lock
from ascend_cpt.monitor.history import EVALUATIONS_NAME, JUDGED_KINDS, METRICS_NAME, read_evaluations, read_metrics
from ascend_cpt.monitor.record import KINDS, Judged, to_values
from ascend_cpt.run.evaluation.nodes import RunFolders

LOCK_NAME = ".evaluate.lock"
CHECKPOINT_KEY = "checkpoint"
"""In the records of tools/evaluate.py: the checkpoint that was evaluated; see `identify`."""
STOP_NAME = "stop_requested.json"
"""Written into the run folder to stop its training after the current step."""


_Key = tuple[int, str, str]


@contextmanager
def hold_watch_lock(run_dir: Path) -> Iterator[None]:
    """Hold the run's evaluation lock until the block or the process ends.

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


def identify(parts: Sequence[Path]) -> str:
    """Return the checksum of a checkpoint's states, which differs between two checkpoints of the same step.

    Args:
        parts: The folder of the checkpoint, or of each of its parts.

    Raises:
        OSError: a part was deleted.
    """
    return checksum_bytes(b"".join((part / STATE_NAME).read_bytes() for part in parts))


def list_pending(run: RunFolders, names: Collection[tuple[str, str]]) -> list[int]:
    """Return, in order, the steps of complete checkpoints that have no record for one of `names` (kind, name)."""
    recorded = _list_recorded(run.main)
    pending = []
    for step in run.list_steps():
        try:
            checkpoint = identify(run.locate(step))
        except OSError:
            continue  # deleted in the meantime
        if not all(_is_recorded(recorded, (step, *name), checkpoint) for name in names):
            pending.append(step)
    return pending


def drop_recorded(run_dir: Path, records: Iterable[Judged], checkpoint: str) -> list[Judged]:
    """Return only the checkpoint's new records: after a set is added, every set is evaluated again."""
    recorded = _list_recorded(run_dir)
    return [
        record
        for record in records
        if not _is_recorded(recorded, (record.step, KINDS[type(record)], record.name), checkpoint)
    ]


def _is_recorded(recorded: Mapping[_Key, Collection[str | None]], key: _Key, checkpoint: str) -> bool:
    # Records written by the training run or by earlier versions do not name a checkpoint.
    return not {None, checkpoint}.isdisjoint(recorded.get(key, ()))


def _list_recorded(run_dir: Path) -> dict[_Key, set[str | None]]:
    """Map the step, kind and name of every validation and score to the evaluated checkpoints."""
    recorded: dict[_Key, set[str | None]] = {}
    for record in (*read_metrics(run_dir / METRICS_NAME), *read_evaluations(run_dir)):
        if record["kind"] in JUDGED_KINDS:
            key = int(record["step"]), record["kind"], record["name"]
            recorded.setdefault(key, set()).add(record.get(CHECKPOINT_KEY))
    return recorded


def append_records(run_dir: Path, records: Sequence[Judged], checkpoint: str) -> None:
    """Append all of a checkpoint's records to evaluations.jsonl, or none. Drop a line that a crash cut short."""
    path = run_dir / EVALUATIONS_NAME
    before = path.read_bytes() if path.is_file() else b""
    lines = "".join(json.dumps({**to_values(record), CHECKPOINT_KEY: checkpoint}) + "\n" for record in records)
    write_text(path, before[: before.rfind(b"\n") + 1].decode("utf-8", "replace") + lines)


def request_stop(run_dir: Path, message: str) -> None:
    """Ask the training to save and stop after its current step."""
    write_text(run_dir / STOP_NAME, json.dumps({"message": message}) + "\n")


def take_stop_request(run_dir: Path) -> str | None:
    """Return the message of a stop request, or None."""
    try:
        return str(json.loads((run_dir / STOP_NAME).read_text(encoding="utf-8"))["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
