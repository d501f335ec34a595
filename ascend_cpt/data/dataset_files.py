"""Finds the files of a packed dataset from its prefix, its manifest or any of its files.

A MindRecord dataset has the files `{prefix}.mindrecord` or `{prefix}.mindrecord{k}`, each with a `.db` index. An
indexed dataset has `{prefix}.bin` and `{prefix}.idx`. A MindRecord file with any other name is its own prefix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MANIFEST_SUFFIX = ".manifest.json"
MINDRECORD_INDEX = ".db"
_ENDING = re.compile(r"(?P<prefix>.+?)\.(mindrecord\d*(\.db)?|bin|idx|manifest\.json)")
_MINDRECORD = re.compile(r"\.mindrecord(\d*)")


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    """The data files of a dataset, with or without a manifest."""

    prefix: Path
    is_indexed: bool
    """Whether it is an indexed dataset (`.bin` and `.idx`), not MindRecord."""
    files: tuple[Path, ...]
    """MindRecord files in the order of their numbers, or the `.bin` file."""


def strip_ending(path: Path) -> Path:
    """Return the dataset prefix for a file name, or `path` itself if its ending is not known."""
    match = _ENDING.fullmatch(path.name)
    return path.with_name(match["prefix"]) if match else path


def find_data_files(path: Path) -> list[DataFiles]:
    """Return the datasets that `path` may refer to as a file, a prefix or a folder. Manifests are ignored."""
    if path.is_dir():
        found = {strip_ending(file) for file in sorted(path.iterdir()) if _ENDING.fullmatch(file.name)}
        return [files for prefix in sorted(found) for files in _find_at(prefix)]
    if path.suffix == MINDRECORD_INDEX and path.with_suffix("").is_file():
        path = path.with_suffix("")
    prefix = strip_ending(path)
    if prefix == path:
        if _is_mindrecord(path):
            return [DataFiles(prefix=path, is_indexed=False, files=(path,))]
        return _find_at(path)
    wants_indexed = path.suffix in (".bin", ".idx")
    return [files for files in _find_at(prefix) if files.is_indexed == wants_indexed]


def _find_at(prefix: Path) -> list[DataFiles]:
    found = []
    data = Path(f"{prefix}.bin")
    if data.is_file() and Path(f"{prefix}.idx").is_file():
        found.append(DataFiles(prefix=prefix, is_indexed=True, files=(data,)))
    whole = Path(f"{prefix}.mindrecord")
    numbered: dict[int, Path] = {}
    for path in prefix.parent.iterdir() if prefix.parent.is_dir() else ():
        match = (
            _MINDRECORD.fullmatch(path.name.removeprefix(prefix.name)) if path.name.startswith(prefix.name) else None
        )
        if match and match[1] and _is_mindrecord(path):
            numbered[int(match[1])] = path
    files = (whole,) if _is_mindrecord(whole) else tuple(numbered[k] for k in sorted(numbered))
    if files:
        found.append(DataFiles(prefix=prefix, is_indexed=False, files=files))
    return found


def _is_mindrecord(path: Path) -> bool:
    return path.is_file() and Path(f"{path}{MINDRECORD_INDEX}").is_file()
