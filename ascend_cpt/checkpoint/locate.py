"""Finds, checks and deletes a run's checkpoints."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ascend_cpt.checkpoint.state import STATE_NAME, RunState, read_state
from ascend_cpt.checkpoint.verify import check_file
from ascend_cpt.errors import CheckpointError
from ascend_cpt.strict_json import is_plain_name

FOLDER_PATTERN = re.compile(r"^iteration_(\d{8,})$")  # as named by MindFormers
MODEL_SHARD_PATTERN = re.compile(r"cpt-model-(?P<rank>\d+)-(?P<num_ranks>\d+)\.safetensors")
RESOLVED_NAME = "resolved.yaml"
NOTHING: Mapping[str, str] = {}
BEST_NAME = "best"  # a text file in the run folder: the name of the best checkpoint's folder


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint folder and its state."""

    folder: Path
    state: RunState


def list_step_folders(checkpoint_root: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of every checkpoint folder, complete or not, newest first."""
    found = []
    for path in checkpoint_root.iterdir() if checkpoint_root.is_dir() else ():
        match = FOLDER_PATTERN.match(path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def check_checkpoint(folder: Path) -> Checkpoint:
    """Return a checkpoint after checking that every file has the size recorded at saving.

    Raises:
        CheckpointError: the folder is missing or was not saved completely, or a file is missing or truncated.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    state = read_state(folder)
    for name, size_bytes in state.files.items():
        check_file(folder / name, size_bytes)
    return Checkpoint(folder=folder, state=state)


def find_missing_ranks(names: Iterable[str]) -> tuple[int, list[int]]:
    """Return how many ranks saved the model shards in these file names, and the first ranks with a missing shard.

    At most ten are returned, because a name may state any number of ranks.
    """
    shards = [match for match in map(MODEL_SHARD_PATTERN.fullmatch, names) if match]
    num_ranks = max((int(shard["num_ranks"]) for shard in shards), default=0)
    present = {int(shard["rank"]) for shard in shards}
    return num_ranks, list(islice((rank for rank in range(num_ranks) if rank not in present), 10))


def find_resolved(checkpoint: Path) -> Path | None:
    """Return the resolved configuration of a checkpoint's run, from its run folder or from a gathered folder."""
    for folder in (checkpoint, checkpoint.parent.parent):
        if (folder / RESOLVED_NAME).is_file():
            return folder / RESOLVED_NAME
    return None


def find_newest_complete(
    checkpoint_root: Path, damaged: Mapping[str, str] = NOTHING
) -> tuple[Checkpoint | None, list[str]]:
    """Return a run's newest complete checkpoint, or None, and a message for each newer one that is skipped.

    Args:
        checkpoint_root: Folder with a subfolder for each saved step.
        damaged: Names of folders to skip, with the message for each.
    """
    skipped: list[str] = []
    for _, folder in list_step_folders(checkpoint_root):
        if folder.name in damaged:
            skipped.append(damaged[folder.name])
            continue
        try:
            return check_checkpoint(folder), skipped
        except CheckpointError as error:
            skipped.append(str(error))
    return None, skipped


def list_complete(checkpoint_root: Path) -> tuple[dict[int, Checkpoint], list[str]]:
    """Return a run's complete checkpoints by step, and a message for each incomplete one."""
    complete: dict[int, Checkpoint] = {}
    incomplete: list[str] = []
    for step, folder in list_step_folders(checkpoint_root):
        try:
            complete[step] = check_checkpoint(folder)
        except CheckpointError as error:
            incomplete.append(str(error))
    return complete, incomplete


def locate_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`. See `locate_checkpoint_except`, which raises the same errors."""
    return locate_checkpoint_except(path, NOTHING)[0]


def locate_checkpoint_except(path: Path, damaged: Mapping[str, str]) -> tuple[Checkpoint, list[str]]:
    """Return the checkpoint at `path`: a step folder, a gathered one, a `checkpoint` folder, a run folder or RUN/best.

    For a `checkpoint` or run folder, return the newest complete step, and a message for each newer one skipped.

    Args:
        path: The folder.
        damaged: Names of step folders to skip, with the message for each.

    Raises:
        CheckpointError: there is no complete checkpoint.
    """
    if path.name == BEST_NAME and (path.parent / "checkpoint").is_dir() and not path.is_dir():
        return _refuse_damaged(_read_best(path), damaged), []
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such checkpoint; give a run folder or one of its checkpoint/iteration_* folders"
        )
    if FOLDER_PATTERN.match(path.name) or (path / STATE_NAME).is_file():
        try:
            return _refuse_damaged(check_checkpoint(path), damaged), []
        except CheckpointError as error:
            raise CheckpointError(f"{error}; choose another step") from None
    root = path / "checkpoint" if (path / "checkpoint").is_dir() else path
    found, skipped = find_newest_complete(root, damaged)
    if found is None:
        reason = f" ({skipped[0]})" if skipped else ""
        raise CheckpointError(f"{path}: no complete checkpoint{reason}")
    return found, skipped


def _refuse_damaged(checkpoint: Checkpoint, damaged: Mapping[str, str]) -> Checkpoint:
    if checkpoint.folder.name in damaged:
        raise CheckpointError(damaged[checkpoint.folder.name])
    return checkpoint


def _read_best(marker: Path) -> Checkpoint:
    """Return the checkpoint named in RUN/best."""
    try:
        name = marker.read_text(encoding="utf-8").strip()
        if not FOLDER_PATTERN.match(name) or not is_plain_name(name):
            raise CheckpointError(f"{marker}: does not name a checkpoint folder; remove it")
    except UnicodeDecodeError:
        raise CheckpointError(f"{marker}: does not name a checkpoint folder; remove it") from None
    except FileNotFoundError:
        raise CheckpointError(
            f"{marker}: no best checkpoint is recorded; give {marker.parent}, or set cpt.checkpoint.keep_best and "
            "continue training"
        ) from None
    return check_checkpoint(marker.parent / "checkpoint" / name)


def remove_old_checkpoints(
    checkpoint_root: Path,
    keep_last: int,
    *,
    keep: Path | None = None,
    keep_every_steps: int | None = None,
    best: Collection[Path] = (),
) -> list[Path]:
    """Delete all but the newest `keep_last` complete checkpoints (0 keeps all) and return the deleted folders.

    The newly written folder `keep`, the folders `best`, and steps that are multiples of `keep_every_steps` are not
    deleted. Incomplete folders older than the newest complete one are also deleted, because they will never be used.
    """
    if keep_last < 1:
        return []
    kept, deleted = 0, []
    for step, folder in list_step_folders(checkpoint_root):
        try:
            check_checkpoint(folder)
        except CheckpointError:
            stays = kept == 0
        else:
            is_permanent = keep_every_steps is not None and step % keep_every_steps == 0
            kept += not is_permanent
            stays = is_permanent or kept <= keep_last or folder == keep or folder in best
        if not stays:
            shutil.rmtree(folder)
            deleted.append(folder)
    return deleted
