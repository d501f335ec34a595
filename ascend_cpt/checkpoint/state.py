"""State of a run at a step. It is the last file written to a checkpoint; without it a checkpoint is incomplete."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascend_cpt.errors import CheckpointError
from ascend_cpt.files import write_text

STATE_NAME = "cpt_state.json"
STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RunState:
    """State of a run at a step, for resuming it exactly and for detecting changed settings.

    `files` has the size of every file of the checkpoint in bytes; `position` is the number of rows consumed by all
    ranks since the start of the run.
    """

    step: int
    total_steps: int
    tokens: int
    position: int
    fingerprint: dict[str, Any]
    files: dict[str, int] = field(default_factory=dict)
    version: int = STATE_VERSION


def write_state(folder: Path, state: RunState) -> None:
    """Write the state to a checkpoint folder atomically (temporary name, then rename)."""
    write_text(folder / STATE_NAME, json.dumps(dataclasses.asdict(state), indent=1) + "\n")


def read_state(folder: Path) -> RunState:
    """Return the state of a checkpoint folder.

    Raises:
        CheckpointError: the state is missing or cannot be read.
    """
    path = folder / STATE_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        state = RunState(**data)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: has no {STATE_NAME}, so the save did not finish") from None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if state.version != STATE_VERSION:
        raise CheckpointError(f"{path}: has version {state.version}, expected {STATE_VERSION}")
    return state
