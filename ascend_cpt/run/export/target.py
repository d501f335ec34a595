"""The target of `cpt.export`: checks before training, and the record of what was exported."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.config.loader import raise_problems
from ascend_cpt.errors import CheckpointError, CptError
from ascend_cpt.files import write_text
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.run.trained_model import check_like
from ascend_cpt.strict_json import JsonError, build, read_json_object
from ascend_cpt.weights.hf_folder import is_hf_folder

RECORD_NAME = "export.json"


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """The run's export: the absolute path of its folder, the step, and whether it was verified."""

    to: str
    step: int
    verified: bool


def read_record(run_dir: Path) -> ExportRecord | None:
    """Return the record of the run's export, or None if there is none.

    Raises:
        CheckpointError: the record is damaged.
    """
    path = run_dir / RECORD_NAME
    try:
        return build(ExportRecord, read_json_object(path))
    except FileNotFoundError:
        return None
    except JsonError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); remove it") from None


def write_record(run_dir: Path, record: ExportRecord) -> None:
    """Write the record of the run's export."""
    write_text(run_dir / RECORD_NAME, json.dumps(dataclasses.asdict(record), indent=1) + "\n")


def find_own_export(run: ResolvedRun) -> ExportRecord | None:
    """Return the record of this run's export if it is in the folder `cpt.export.to`."""
    export = run.config.cpt.export
    if export is None or not is_hf_folder(Path(export.to)):
        return None
    record = read_record(run.run_dir)
    return record if record is not None and record.to == str(Path(export.to).absolute()) else None


def choose_like(run: ResolvedRun) -> Path | None:
    """Return the source of the tokenizer files and config.json: `cpt.export.like`, else the initial weights."""
    export = run.config.cpt.export
    if export is not None and export.like is not None:
        return Path(export.like)
    weights = run.config.initial_weights
    if not weights or not is_hf_folder(Path(weights)):
        return None
    try:
        check_like(Path(weights), run.model)
    except CptError:  # a resumed run with a changed `init_from`
        return None
    return Path(weights)


def check_target(run: ResolvedRun) -> None:
    """Check before training that the final export can be written.

    Raises:
        ConfigError: naming every problem of `cpt.export`.
    """
    export = run.config.cpt.export
    if export is None:
        return
    where = f"{run.config.locate('cpt', 'export')}: cpt.export"
    target = Path(export.to)
    problems = []
    if run.run_dir.absolute().is_relative_to(target.absolute()):
        problems.append(f"{where}.to: {target} contains the run folder {run.run_dir}; choose another folder")
    elif target.exists() and not _is_empty(target) and find_own_export(run) is None:
        problems.append(
            f"{where}.to: {target} already exists and is not an export of this run; remove it or choose another folder"
        )
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        problems.append(f"{where}.to: {parent} cannot be written; choose another folder")
    if export.like is not None:
        try:
            check_like(Path(export.like), run.model)
        except CptError as error:
            problems.append(f"{where}.like: {error}")
    raise_problems(run.config.path, problems)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
