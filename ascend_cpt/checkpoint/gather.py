"""Combines the parts of a checkpoint that nodes saved on their local disks into one folder."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.checkpoint.checksums import checksum_file
from ascend_cpt.checkpoint.fingerprint import describe_differences
from ascend_cpt.checkpoint.locate import (
    RESOLVED_NAME,
    Checkpoint,
    find_missing_ranks,
    find_resolved,
    locate_checkpoint,
)
from ascend_cpt.checkpoint.state import write_state
from ascend_cpt.errors import CheckpointError
from ascend_cpt.files import sync_file, sync_folder, write_folder_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A file to copy, and its recorded checksum, if any."""

    path: Path
    checksum: str | None


def gather_checkpoint(parts: Sequence[Path], output: Path, *, verify: bool = True, links: bool = False) -> Checkpoint:
    """Copy all parts' files to the folder `output` and return the checkpoint. After an error, no files are left behind.

    Args:
        parts: Each node's step folder, `checkpoint` folder or run folder (newest step).
        output: Folder to create. It must not exist.
        verify: Compare the copies with the checksums recorded when the files were saved. Files from earlier versions
            have no checksums, which gives a warning.
        links: Make symbolic links instead of copies. Nothing is verified, and the state has no checksums.

    Raises:
        CheckpointError: a part is incomplete or from another step or run, a file is damaged, two parts have different
            versions of a file, ranks are missing, or the output exists or cannot be written.
    """
    if output.exists():
        raise CheckpointError(f"{output}: already exists; choose a new folder")
    checkpoints = [locate_checkpoint(part) for part in parts]
    first = checkpoints[0]
    sources = _choose_files(checkpoints)
    check_ranks(first, sources)
    unverified = [source.path for source in sources.values() if source.checksum is None]
    if verify and not links and unverified:
        logger.warning("%s: saved by an earlier version without checksums, so it is not verified", unverified[0].parent)
    resolved = find_resolved(first.folder)
    if resolved is not None:  # needed to export the gathered folder
        sources.setdefault(RESOLVED_NAME, _Source(path=resolved, checksum=None))
    try:
        with write_folder_whole(output) as temporary:
            checksums = {}
            for name, source in sorted(sources.items()):
                if links:
                    (temporary / name).symlink_to(source.path.absolute())
                else:
                    checksums[name] = _copy(source, temporary / name, verify)
            sync_folder(temporary)
            files = {name: (temporary / name).stat().st_size for name in sorted(sources)}
            state = dataclasses.replace(first.state, files=files, checksums=checksums)
            write_state(temporary, state)
    except OSError as error:
        raise CheckpointError(
            f"{output}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from None
    return Checkpoint(folder=output, state=state)


def _choose_files(checkpoints: Sequence[Checkpoint]) -> dict[str, _Source]:
    """Return the file to copy for each name, after comparing the parts with the first one."""
    first = checkpoints[0]
    sources: dict[str, _Source] = {}
    for checkpoint in checkpoints:
        if checkpoint.state.step != first.state.step:
            raise CheckpointError(
                f"{checkpoint.folder}: has step {checkpoint.state.step}, but {first.folder} has step "
                f"{first.state.step}; "
                "give the folders of the same step"
            )
        differences = describe_differences(first.state.fingerprint, checkpoint.state.fingerprint)
        if differences:
            raise CheckpointError(f"{checkpoint.folder}: from a different run than {first.folder} ({differences[0]})")
        for name, size_bytes in checkpoint.state.files.items():
            source = _Source(path=checkpoint.folder / name, checksum=checkpoint.state.checksums.get(name))
            known = sources.setdefault(name, source)
            if known.path.stat().st_size != size_bytes:
                raise CheckpointError(f"{source.path}: differs in size from {known.path}; copy the damaged one again")
    return sources


def _copy(source: _Source, target: Path, verify: bool) -> str:
    """Copy a file and return the checksum recorded at saving or, if there is none, the copy's checksum."""
    shutil.copyfile(source.path, target)
    sync_file(target)
    if source.checksum is not None and not verify:
        return source.checksum
    # Use the copy's checksum, so that copying errors are detected too.
    checksum = checksum_file(target)
    if source.checksum not in (None, checksum):
        raise CheckpointError(
            f"{source.path}: damaged: its content does not match the checksum recorded when it was saved; copy it "
            "again from its node, or give the folders of another step"
        )
    return checksum


def check_ranks(first: Checkpoint, names: Iterable[str]) -> None:
    """Check that no model shard is missing.

    Args:
        first: The part to name in the error.
        names: Names of all parts' files.

    Raises:
        CheckpointError: the shards of some ranks are in none of the parts.
    """
    num_ranks, missing = find_missing_ranks(names)
    if missing:
        raise CheckpointError(
            f"{first.folder}: step {first.state.step} was saved by {num_ranks} ranks, but no part has the shards of "
            f"rank {missing[0]}; give the folders of all nodes"
        )
