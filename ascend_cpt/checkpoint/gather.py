"""Combine the parts of a checkpoint that nodes saved on their local disks into one folder."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

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


def gather_checkpoint(parts: Sequence[Path], output: Path, *, links: bool = False) -> Checkpoint:
    """Copy the files of all parts to the folder `output` and return the checkpoint. Nothing is left after an error.

    Args:
        parts: Step folder, `checkpoint` folder or run folder (newest step) of each node.
        output: Folder to create; must not exist.
        links: Make symbolic links instead of copies.

    Raises:
        CheckpointError: a part is incomplete or from another step or run, two parts have different versions
            of a file, ranks are missing, or the output exists or cannot be written.
    """
    if output.exists():
        raise CheckpointError(f"{output}: already exists; choose a new folder")
    checkpoints = [locate_checkpoint(part) for part in parts]
    first = checkpoints[0]
    sources: dict[str, Path] = {}
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
            known = sources.setdefault(name, checkpoint.folder / name)
            if known.stat().st_size != size_bytes:
                raise CheckpointError(
                    f"{checkpoint.folder / name}: differs in size from {known}; copy the damaged one again"
                )
    check_ranks(first, sources)
    resolved = find_resolved(first.folder)
    if resolved is not None:  # with it the gathered folder can be exported
        sources.setdefault(RESOLVED_NAME, resolved)
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, source in sources.items():
            if links:
                (temporary / name).symlink_to(source.absolute())
            else:
                shutil.copyfile(source, temporary / name)
        files = {name: (temporary / name).stat().st_size for name in sorted(sources)}
        state = dataclasses.replace(first.state, files=files)
        write_state(temporary, state)
        os.replace(temporary, output)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{output}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from None
    return Checkpoint(folder=output, state=state)


def check_ranks(first: Checkpoint, names: Iterable[str]) -> None:
    """Check that no shard of a model is missing.

    Args:
        first: The part to name in the error.
        names: Names of the files of all parts.

    Raises:
        CheckpointError: the shards of some ranks are in none of the parts.
    """
    num_ranks, missing = find_missing_ranks(names)
    if missing:
        raise CheckpointError(
            f"{first.folder}: step {first.state.step} was saved by {num_ranks} ranks, but no part has the shards of "
            f"rank {missing[0]}; give the folders of all nodes"
        )
