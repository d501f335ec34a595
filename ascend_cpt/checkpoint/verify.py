"""Compares a checkpoint's files with the checksums recorded at saving."""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping
from pathlib import Path

from ascend_cpt.checkpoint.checksums import PREFIX, checksum_file
from ascend_cpt.checkpoint.state import RunState
from ascend_cpt.errors import CheckpointError

_SHARD_PATTERN = re.compile(r".*-(?P<rank>\d+)-(?P<num_ranks>\d+)\.safetensors")
_OPTIMIZER_PATTERN = re.compile(r".*opt-\d+-\d+\.safetensors")


def check_file(path: Path, size_bytes: int, checksum: str | None = None) -> None:
    """Check a file's size and, unless the given checksum is None, its checksum.

    Raises:
        CheckpointError: the file is missing or differs from what was saved.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: missing from the checkpoint")
    actual_bytes = path.stat().st_size
    if actual_bytes != size_bytes:
        raise CheckpointError(f"{path}: has {actual_bytes} bytes but was saved with {size_bytes}")
    if checksum is None:
        return
    if not checksum.startswith(PREFIX):
        raise CheckpointError(f"{path}: its checksum in cpt_state.json is of an unknown kind; update ascend_cpt")
    try:
        actual = checksum_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if actual != checksum:
        raise CheckpointError(f"{path}: damaged: its content does not match the checksum recorded when it was saved")


def list_weight_files(state: RunState) -> dict[str, int]:
    """Return the sizes of the files needed for the weights alone, which are all but the optimizer's."""
    return {name: size for name, size in state.files.items() if not _OPTIMIZER_PATTERN.fullmatch(name)}


def choose_share(files: Mapping[str, int], index: int, count: int) -> list[str]:
    """Return the files that process `index` of `count` verifies, balancing the bytes between processes.

    If `count` ranks saved the checkpoint, each process verifies its own rank's shards, which it loads afterwards.

    Args:
        files: Size in bytes of each file.
        index: Index of the process, from 0.
        count: Number of processes. Together, their shares cover all `files`.
    """
    loads = [(0, process) for process in range(count)]
    share: list[str] = []
    for name in sorted(files, key=lambda name: (-files[name], name)):
        shard = _SHARD_PATTERN.fullmatch(name)
        if shard and int(shard["num_ranks"]) == count and int(shard["rank"]) < count:
            owner = int(shard["rank"])
        else:
            load, owner = loads[0]
            heapq.heapreplace(loads, (load + files[name], owner))
        if owner == index:
            share.append(name)
    return share
