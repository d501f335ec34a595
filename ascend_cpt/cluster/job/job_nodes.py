"""The nodes of an attempt, passed from the launcher to its workers, and the numbers of workers that fit the run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ascend_cpt.files import write_text

JOB_NODES_VARIABLE = "ASCEND_CPT_JOB_NODES"
FITTING_NAME = "fitting_sizes"
"""Name of the file in which rank 0 records the numbers of workers that fit the run."""
MAX_REASON_CHARACTERS = 2000  # of an environment variable


@dataclass(frozen=True, kw_only=True)
class JobNodes:
    """The nodes of an attempt, in a job that can continue without some of its nodes."""

    attempt: int
    """Counted from 1 since the start of the launcher on node 0."""
    hosts: tuple[str, ...]
    """Host names in order of rank."""
    num_nodes: int
    """Nodes that the job was started on."""
    num_workers: int
    """Workers that the job was started with."""
    smaller: tuple[int, ...]
    """The numbers of workers, below this, on which it may continue."""
    reason: str
    """Why the nodes differ from those of the previous attempt; empty if they are the same."""
    fitting_file: str

    def to_text(self) -> str:
        """Return the value of the environment variable."""
        return json.dumps(asdict(self) | {"reason": self.reason[:MAX_REASON_CHARACTERS]})


def read_job_nodes(environ: Mapping[str, str] = os.environ) -> JobNodes | None:
    """Return the nodes of this attempt, or None if the job always runs on the same nodes."""
    text = environ.get(JOB_NODES_VARIABLE)
    if not text:
        return None
    values = json.loads(text)
    return JobNodes(**values | {name: tuple(values[name]) for name in ("hosts", "smaller")})


def write_fitting(path: Path, sizes: Iterable[int]) -> None:
    """Record the numbers of workers that fit the run. Called by rank 0."""
    write_text(path, " ".join(map(str, sizes)))


def read_fitting(path: Path) -> frozenset[int] | None:
    """Return the recorded numbers of workers, or None if none were recorded."""
    try:
        return frozenset(map(int, path.read_text(encoding="ascii").split()))
    except (OSError, ValueError):
        return None
