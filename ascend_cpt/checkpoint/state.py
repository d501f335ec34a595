"""The state of a run at a step. Its file is the last one written, so a checkpoint without it is incomplete."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascend_cpt.checkpoint.checksums import checksum_bytes
from ascend_cpt.errors import CheckpointError
from ascend_cpt.files import write_text
from ascend_cpt.strict_json import JsonError, build, check_plain_name, read_json_object, shorten

STATE_NAME = "cpt_state.json"
STATE_VERSION = 1
_OWN_CHECKSUM = "checksum"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run at a step, for exact resumption and for detecting changed settings.

    `files` has the size in bytes of every checkpoint file. `checksums` has each file's checksum, and is empty in
    checkpoints from earlier versions. `position` is the number of rows consumed by all ranks since the run started.
    `layout` decides which slices of the parameters each rank saved; it is empty in checkpoints from earlier versions.
    `base` names and identifies the weights that adapters belong to; it is empty if the checkpoint has all weights.
    """

    step: int
    total_steps: int
    tokens: int
    position: int
    fingerprint: dict[str, Any]
    files: dict[str, int] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)
    base: dict[str, str] = field(default_factory=dict)
    version: int = STATE_VERSION


def write_state(folder: Path, state: RunState) -> None:
    """Write the state, with its own checksum, to a checkpoint folder atomically (temporary name, then rename)."""
    record = dataclasses.asdict(state)
    text = json.dumps({**record, _OWN_CHECKSUM: _checksum_record(record)}, indent=1)
    write_text(folder / STATE_NAME, text + "\n")


def read_state(folder: Path) -> RunState:
    """Return a checkpoint folder's state.

    Raises:
        CheckpointError: the state is missing, cannot be read, is damaged, or names files outside the folder.
    """
    path = folder / STATE_NAME
    try:
        record = read_json_object(path)
        checksum = record.pop(_OWN_CHECKSUM, None)
        version = record.get("version", STATE_VERSION)
        if version != STATE_VERSION:
            raise CheckpointError(f"{path}: has version {shorten(version)}, expected {STATE_VERSION}")
        state = build(RunState, record)
        _check_files(state)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: has no {STATE_NAME}, so the save did not finish") from None
    except (OSError, JsonError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if checksum is not None and checksum != _checksum_record(record):
        raise CheckpointError(f"{path}: damaged: its content does not match its checksum")
    return state


def _check_files(state: RunState) -> None:
    for name, size_bytes in state.files.items():
        if check_plain_name(name) == STATE_NAME or size_bytes < 0:
            raise JsonError(f"files: {shorten(name)} with {size_bytes} bytes is not a file of a checkpoint")
    if state.checksums and state.checksums.keys() != state.files.keys():
        name = min(state.checksums.keys() ^ state.files.keys())
        raise JsonError(f"{shorten(name)} is only in one of `files` and `checksums`")
    if min(state.step, state.total_steps, state.tokens, state.position) < 0:
        raise JsonError("has a negative count")


def _checksum_record(record: Mapping[str, Any]) -> str:
    # Convert to JSON and back first, because JSON turns tuples into lists and all keys into strings.
    return checksum_bytes(json.dumps(json.loads(json.dumps(record)), sort_keys=True).encode())
