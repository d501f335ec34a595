"""The folders of a run: a single one, or one per node without shared storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.checkpoint.gather import check_ranks, gather_checkpoint
from ascend_cpt.checkpoint.locate import Checkpoint, check_checkpoint, list_complete, locate_checkpoint
from ascend_cpt.errors import CheckpointError
from ascend_cpt.monitor.history import METRICS_NAME, RUN_INFO_NAME


@dataclass(frozen=True, kw_only=True)
class RunFolders:
    """The folders of a run that is being followed."""

    folders: tuple[Path, ...]
    main: Path
    """The one with the records that report and trackers show."""

    def list_steps(self) -> list[int]:
        """Return the steps that are complete in all folders, in order."""
        steps = [set(list_complete(folder / "checkpoint")[0]) for folder in self.folders]
        return sorted(set.intersection(*steps))

    def is_over(self) -> bool:
        """Return whether the newest step that is complete in all folders is the last one of the run."""
        steps = self.list_steps()
        return bool(steps) and steps[-1] >= check_checkpoint(self.locate(steps[-1])[0]).state.total_steps

    def locate(self, step: int) -> list[Path]:
        """Return the folder of the checkpoint, or of each of its parts."""
        return [folder / "checkpoint" / f"iteration_{step:08d}" for folder in self.folders]


def follow(folders: Sequence[Path]) -> RunFolders:
    """Return the run in these folders.

    Raises:
        CheckpointError: one of the folders does not belong to a run that has started.
    """
    for folder in folders:
        if not (folder / "checkpoint").is_dir() and not (folder / METRICS_NAME).is_file():
            raise CheckpointError(f"{folder}: no run has started in this folder; --watch needs a run folder")
    if len(folders) == 1:
        return RunFolders(folders=tuple(folders), main=folders[0])
    # Only the reporting process writes run.json, on its own node.
    main = next((folder for folder in folders if (folder / RUN_INFO_NAME).is_file()), None)
    if main is None:
        raise CheckpointError(
            f"{', '.join(map(str, folders))}: none of them has {RUN_INFO_NAME}; give the run folders of all nodes, "
            "once the run has started"
        )
    return RunFolders(folders=tuple(folders), main=main)


def choose_parts(paths: Sequence[Path]) -> list[Path]:
    """Return the checkpoints at the paths or, for run folders, the checkpoints at their newest common step.

    Raises:
        CheckpointError: there is no checkpoint, or no step is complete in all folders.
    """
    if not all((path / "checkpoint").is_dir() for path in paths):
        return [locate_checkpoint(path).folder for path in paths]
    run = RunFolders(folders=tuple(paths), main=paths[0])
    if not (steps := run.list_steps()):
        raise CheckpointError(f"{', '.join(map(str, paths))}: no step is complete in all of them")
    return run.locate(steps[-1])


def link_parts(parts: Sequence[Path], folder: Path) -> Path:
    """Return the checkpoint or, if it has several parts, a folder inside `folder` with links to all files of the parts.

    Raises:
        CheckpointError: the parts belong to different checkpoints, or shards are missing.
        FileNotFoundError: a part was deleted in the meantime.
    """
    if len(parts) == 1:
        return parts[0]
    return gather_checkpoint(parts, folder / parts[0].name, links=True).folder


def check_parts(checkpoints: Sequence[Checkpoint]) -> None:
    """Check that the parts of a checkpoint have all shards.

    Raises:
        CheckpointError: a checkpoint saved by several nodes lacks one node's part.
    """
    check_ranks(checkpoints[0], [name for checkpoint in checkpoints for name in checkpoint.state.files])
