"""Reads a task's item files: jsonl, jsonl.gz and parquet."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ascend_cpt.errors import DataError

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
SEED = 0
"""Seed of the choice of items."""
MAX_LISTED = 20
"""Number of problems that one error lists."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One item as it is in the file."""

    where: str
    """`file:line`; in a parquet file the number of the row, from 1."""
    data: dict[str, Any]


def read_records(path: str) -> list[Record]:
    """Return the records in a file, or in all files directly in a folder, ordered by file name.

    Raises:
        DataError: the file is missing, has an unknown extension, has no records, or has invalid lines (all listed).
    """
    problems: list[str] = []
    records: list[Record] = []
    files = _find_files(Path(path))
    for file in files:
        try:
            rows = _read_parquet(file) if file.suffix == ".parquet" else _read_json_lines(file)
            for number, row in rows:
                where = f"{file}:{number}"
                if isinstance(row, dict):
                    records.append(Record(where=where, data=row))
                else:
                    problems.append(f"{where}: {row}")
        except (OSError, EOFError, MemoryError, UnicodeError, zlib.error, pa.ArrowException) as error:
            problems.append(f"{file}: cannot be read: {error}")
    raise_problems(path, problems)
    if not records:
        raise DataError(f"{path}: has no items; expected one JSON object per line, or rows of a parquet file")
    return records


def choose_items(items: Sequence[T], max_items: int | None) -> list[T]:
    """Return `max_items` items spread over the file: a random one from each of `max_items` equal parts.

    The choice depends only on the number of items and `max_items`.
    """
    if max_items is None or max_items >= len(items):
        return list(items)
    generator = random.Random(SEED)
    bounds = [part * len(items) // max_items for part in range(max_items + 1)]
    return [items[low + int(generator.random() * (high - low))] for low, high in pairwise(bounds)]


def raise_problems(where: str, problems: Sequence[str]) -> None:
    """Raise one DataError that lists the problems, if there are any."""
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        listed = [f"  {problem}" for problem in problems[:MAX_LISTED]]
        if len(problems) > MAX_LISTED:
            listed.append(f"  and {len(problems) - MAX_LISTED} more")
        raise DataError("\n".join([f"{where}: {len(problems)} problems:", *listed]))


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(ENDINGS):
            raise DataError(f"{path}: unknown file extension; known: {' '.join(ENDINGS)}")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder (relative paths start at {Path.cwd()})")
    files = sorted(file for file in path.iterdir() if file.name.endswith(ENDINGS) and not file.name.startswith("."))
    if not files:
        raise DataError(f"{path}: contains no files to read (extensions: {' '.join(ENDINGS)})")
    return files


def _read_json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (line, object or problem) for each line that is not blank."""
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, _parse(line)


def _parse(line: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "is not UTF-8; convert the file"
    except (ValueError, RecursionError) as error:
        return f"malformed JSON: {error}"
    return row if isinstance(row, dict) else "is not a JSON object; each line must be one item in {...}"


def _read_parquet(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, row) for each row."""
    yield from enumerate(pq.read_table(file, use_threads=False).to_pylist(), start=1)
