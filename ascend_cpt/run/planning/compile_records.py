"""Keeps the times of compiles on this machine, from which later plans estimate the time to compile."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ascend_cpt.files import write_text
from ascend_cpt.plan.speed.compile_time import MAX_RECORDS, CompileRecord
from ascend_cpt.strict_json import JsonError, read_json_object

logger = logging.getLogger(__name__)


def find_compile_records() -> Path:
    """Return the path of this machine's records in XDG_CACHE_HOME or ~/.cache, which several machines may share."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    host = re.sub(r"[^\w.-]", "_", os.uname().nodename)
    return cache / "ascend_cpt" / f"compiles_{host}.json"


def read_compile_records(path: Path) -> list[CompileRecord]:
    """Return the records, oldest first; none if the file is missing or damaged."""
    try:
        return [
            CompileRecord(
                num_layers=int(record["num_layers"]),
                num_micro_batches=int(record["num_micro_batches"]),
                cpu_s=float(record["cpu_s"]),
            )
            for record in read_json_object(path)["compiles"]
            if record["cpu_s"] > 0
        ]
    except (OSError, JsonError, KeyError, TypeError, ValueError):
        return []


def add_compile_records(path: Path, added: Sequence[CompileRecord]) -> None:
    """Append records to the file. If it cannot be written, only warn, because they are not needed."""
    records = [*read_compile_records(path), *added][-MAX_RECORDS:]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"compiles": [dataclasses.asdict(record) for record in records]}, indent=1) + "\n")
    except OSError as error:
        logger.warning("%s: cannot be written (%s), so the time to compile is not recorded", path, error.strerror)
