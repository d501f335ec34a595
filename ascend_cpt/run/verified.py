"""Chooses a checkpoint jointly with the job's other processes, each of which verifies some of the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.checkpoint.locate import (
    Checkpoint,
    find_newest_complete,
    list_complete,
    locate_checkpoint_except,
)
from ascend_cpt.checkpoint.state import read_state
from ascend_cpt.checkpoint.verify import check_file, choose_share, list_weight_files
from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.cluster.job.checks import choose_common_step, wait_for_work
from ascend_cpt.errors import CheckpointError

ALONE = JobChannel(rank=0, size=1, node=0, address=None)
"""The channel of a program with one process."""


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """How checkpoints are verified in a job.

    With `shared` storage, all processes split a checkpoint's files among themselves; otherwise the processes on each
    node do. `weights_only` leaves out the optimizer's files, which are then not read. Without `enabled`, only sizes
    are compared. All processes must call each method at the same point.
    """

    channel: JobChannel = ALONE
    shared: bool = True
    weights_only: bool = False
    enabled: bool = True

    def choose_newest(self, checkpoint_root: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """Return the newest undamaged checkpoint of a run, or None, and a line for each newer one skipped.

        Without shared storage, only checkpoints that are complete on every node are considered.

        Raises:
            ClusterError: when another process failed.
        """
        damaged: dict[str, str] = {}
        while True:
            name, skipped = self._find_newest(checkpoint_root, damaged)
            if name is None:
                return None, tuple(skipped)
            folder = checkpoint_root / name
            if not (problem := self.find_damage(folder)):
                return Checkpoint(folder=folder, state=read_state(folder)), tuple(skipped)
            damaged[name] = problem

    def locate(self, path: Path, *, own: bool = False) -> tuple[Checkpoint, tuple[str, ...]]:
        """Return the result of `locate_checkpoint` for a path, and a line for each newer step skipped.

        All processes use the step that the first process sees, because the run may save another one meanwhile. With
        `own`, every process has its own path.

        Raises:
            CheckpointError: no checkpoint is complete and undamaged, or the step that `path` names is not.
            ClusterError: when another process failed.
        """
        damaged: dict[str, str] = {}
        while True:
            found: list[Any] = []
            if own or self.channel.rank == 0:
                checkpoint, skipped = locate_checkpoint_except(path, damaged)
                found = [str(checkpoint.folder), skipped]
            everywhere = self.channel.all_gather("checkpoint", found)
            name, skipped = found if own else everywhere[0]
            folder = Path(name)
            if not (problem := self.find_damage(folder)):
                return Checkpoint(folder=folder, state=read_state(folder)), tuple(skipped)
            damaged[folder.name] = problem

    def find_damage(self, folder: Path) -> str:
        """Return the first problem that any process finds in its share of a checkpoint's files, or "" if there is none.

        Raises:
            ClusterError: when another process failed.
        """
        problem = wait_for_work(self.channel, f"verifying {folder.name}", lambda: self._find_own_damage(folder))
        problems = self.channel.all_gather("damaged files", problem)
        member = next((number for number, found in enumerate(problems) if found), None)
        if member is None:
            return ""
        if self.shared or len({other.node for other in self.channel.members}) == 1:
            return str(problems[member])
        return f"{self.channel.members[member]}: {problems[member]}"

    def note_unverified(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Return a line if the checkpoint has no checksums, and none if it has them or verification is off."""
        if not self.enabled or checkpoint.state.checksums or not checkpoint.state.files:
            return ()
        return (f"{checkpoint.folder}: saved by an earlier version without checksums, so its files are not verified",)

    def _find_own_damage(self, folder: Path) -> str:
        members = self.channel.members
        index, count = self.channel.rank, len(members)
        if not self.shared:
            local = [member.rank for member in members if member.node == members[self.channel.rank].node]
            index, count = local.index(self.channel.rank), len(local)
        try:
            state = read_state(folder)
            files = list_weight_files(state) if self.weights_only else state.files
            checksums = state.checksums if self.enabled else {}
            for name in choose_share(files, index, count):
                check_file(folder / name, files[name], checksums.get(name))
        except CheckpointError as error:
            return str(error)
        return ""

    def _find_newest(self, checkpoint_root: Path, damaged: Mapping[str, str]) -> tuple[str | None, Sequence[str]]:
        """Return the folder name of the newest complete checkpoint not in `damaged`, and the skipped ones."""
        if self.shared:
            own: list[Any] = []
            if self.channel.rank == 0:
                found, skipped = find_newest_complete(checkpoint_root, damaged)
                own = [found.folder.name if found else None, skipped]
            name, skipped = self.channel.all_gather("newest checkpoint", own)[0]
            return name, skipped
        _, skipped = find_newest_complete(checkpoint_root)
        complete = {
            step: found.folder.name
            for step, found in list_complete(checkpoint_root)[0].items()
            if found.folder.name not in damaged
        }
        step, lines = choose_common_step(self.channel, list(complete))
        gathered = self.channel.all_gather("skipped checkpoints", skipped)
        # The processes of a node report the same lines.
        reasons = dict.fromkeys(
            f"{member}: {line}" for member, own in zip(self.channel.members, gathered, strict=True) for line in own
        )
        return (complete[step] if step is not None else None), (*damaged.values(), *reasons, *lines)
