"""Quality filters and near-duplicate removal with datatrove.

datatrove needs NumPy 2 but MindSpore needs NumPy 1, so `datatrove_program.py` runs in a separate environment
(requirements/filters.txt). The documents are exported to temporary JSON Lines files in the work folder.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ascend_cpt.config.yaml_file import read_yaml
from ascend_cpt.data.selection import datatrove_program
from ascend_cpt.data.shards.documents import iter_remaining, save_dropped
from ascend_cpt.data.shards.task import Progress, ShardTask
from ascend_cpt.errors import DataError

logger = logging.getLogger(__name__)

MINHASH_KIND = "MinHash"
PYTHON_VARIABLE = "ASCEND_CPT_FILTERS_PYTHON"

_FILTERS = (
    "C4ParagraphFilter",
    "FineWebQualityFilter",
    "GopherQualityFilter",
    "GopherRepetitionFilter",
    "RegexFilter",
)
"""Deterministic filters for whole documents that need no downloads."""
_MINHASH_OPTIONS = ("n_grams", "num_buckets", "hashes_per_bucket", "language")
_PROGRAM = Path(datatrove_program.__file__)


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Filters and MinHash options for datatrove."""

    filters: tuple[tuple[str, dict[str, Any]], ...]
    """Name and arguments of each filter, in order."""
    minhash: dict[str, Any] | None
    """Options of MinHash, which runs after the filters; None if it does not run."""
    python: str
    """Python interpreter of the environment with datatrove."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of dropped documents: the filters, then MinHash."""
        names = tuple(name for name, _ in self.filters)
        return names if self.minhash is None else (*names, MINHASH_KIND)

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the result, as JSON values."""
        return {"filters": [[name, arguments] for name, arguments in self.filters], "minhash": self.minhash}


def load_filters(path: str) -> FilterSettings:
    """Read a filter configuration.

    Raises:
        DataError: the file cannot be read or contains an unknown name.
    """
    try:
        content = read_yaml(Path(path))
    except (OSError, ValueError) as error:
        raise DataError(f"--filters {path}: cannot be read: {error}") from error
    if not isinstance(content, dict) or not (content.get("filters") or "minhash" in content):
        raise DataError(f"--filters {path}: must be a mapping with `filters:` (a list), `minhash:` (options) or both")
    _check_names(path, "key", content, ("filters", "minhash", "python"))
    filters = []
    for entry in content.get("filters") or ():
        name, arguments = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, None)
        _check_names(path, "filter", [name], _FILTERS)
        if not isinstance(arguments, dict | None):
            raise DataError(f"--filters {path}: {name}: its arguments must be a mapping")
        filters.append((name, arguments or {}))
    if len({name for name, _ in filters}) < len(filters):
        raise DataError(f"--filters {path}: duplicate filter")
    minhash = (content["minhash"] or {}) if "minhash" in content else None
    if minhash is not None:
        if not isinstance(minhash, dict):
            raise DataError(f"--filters {path}: minhash: its options must be a mapping")
        _check_names(path, "minhash option", minhash, _MINHASH_OPTIONS)
    python = content.get("python") or os.environ.get(PYTHON_VARIABLE) or sys.executable
    return FilterSettings(filters=tuple(filters), minhash=minhash, python=str(python))


def check_installed(filters: FilterSettings) -> None:
    """Raise DataError if datatrove is not installed for `filters.python`."""
    try:
        found = subprocess.run([filters.python, "-c", "import datatrove, spacy"], capture_output=True, check=False)
    except OSError as error:
        raise DataError(f"--filters: the interpreter {filters.python} cannot be run: {error.strerror}") from error
    if found.returncode:
        raise DataError(
            f"--filters: datatrove and spacy are not installed for {filters.python}; create an environment "
            "(python3.11 -m venv .venv-filters; .venv-filters/bin/pip install --no-deps --require-hashes "
            "-r requirements/lock/filters-3.11.txt) and set its "
            f"interpreter as `python:` in the --filters file or in {PYTHON_VARIABLE}"
        )


def export_shard(task: ShardTask, report: Callable[[Progress], None]) -> None:
    """Export a shard's documents for datatrove, except those already dropped."""
    assert task.dropped is not None
    with open(_text_folder(task) / f"{task.number:06d}.jsonl", "wb") as file:
        for located in iter_remaining(task):
            text = "\n\n".join(located.document.texts)
            file.write(orjson.dumps({"id": f"{task.number} {located.number}", "text": text}) + b"\n")
            report(Progress(weight=located.weight, num_documents=located.number, num_tokens=0))


def filter_documents(tasks: Sequence[ShardTask], filters: FilterSettings, workers: int, first_kind: int) -> None:
    """Run datatrove on the exported documents and save what it drops. Kinds are numbered from `first_kind`.

    Raises:
        DataError: datatrove failed.
    """
    assert tasks[0].dropped is not None
    text = _text_folder(tasks[0])
    survivors = text.with_name("survivors")
    job = filters.describe() | {
        "text": str(text),
        "survivors": str(survivors),
        "scratch": str(text.with_name("scratch")),
    }
    job |= {"tasks": len(tasks), "workers": workers}
    ran = subprocess.run(
        [filters.python, str(_PROGRAM)], input=json.dumps(job), text=True, capture_output=True, check=False
    )
    if ran.returncode:
        lines = [line for line in ran.stderr.splitlines() if line.strip()] or ["no message"]
        logger.info("%s", ran.stderr)
        raise DataError(f"--filters: datatrove failed: {lines[-1]}")
    before = _read_exported(text)
    for kind, name in enumerate(filters.kinds):
        after = _read_numbers(survivors / name)
        for task in tasks:
            had, has = (numbers.get(task.number, np.empty(0, np.int64)) for numbers in (before, after))
            assert task.dropped is not None
            save_dropped(task.dropped, np.setdiff1d(had, has), first_kind + kind)
        before = after
    for folder in (text, survivors, text.with_name("scratch")):
        shutil.rmtree(folder, ignore_errors=True)


def make_text_folder(task: ShardTask) -> None:
    """Create the folder for exported documents. Remove what an interrupted run has left."""
    folder = _text_folder(task)
    for left in (folder, folder.with_name("survivors"), folder.with_name("scratch")):
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir()


def _text_folder(task: ShardTask) -> Path:
    assert task.dropped is not None
    return task.dropped.with_name("text")


def _read_exported(folder: Path) -> dict[int, np.ndarray]:
    numbers: dict[int, np.ndarray] = {}
    for path in folder.glob("*.jsonl"):
        with open(path, "rb") as lines:
            pairs = [orjson.loads(line)["id"].split() for line in lines]
        numbers[int(path.stem)] = np.array([int(number) for _, number in pairs], np.int64)
    return numbers


def _read_numbers(folder: Path) -> dict[int, np.ndarray]:
    """Read files with `shard number` lines and return the document indices by shard."""
    parts = [np.fromfile(path, np.int64, sep=" ").reshape(-1, 2) for path in folder.iterdir()]
    pairs = np.concatenate([np.empty((0, 2), np.int64), *parts])
    return {shard: pairs[pairs[:, 0] == shard, 1] for shard in np.unique(pairs[:, 0]).tolist()}


def _check_names(path: str, what: str, names: Any, known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            raise DataError(
                f"--filters {path}: unknown {what} {name!r}; did you mean {nearest[0]}? Known: {', '.join(known)}"
            )
