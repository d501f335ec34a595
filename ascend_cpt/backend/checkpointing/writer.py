"""Writes checkpoints in MindFormers' new format, and the state file that marks them complete."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.checkpoint.checkpoint import AsyncSaveManager, CommonInfo, save_checkpoint
from mindformers.checkpoint.utils import get_checkpoint_iter_dir, get_checkpoint_tracker_filename

from ascend_cpt.backend.checkpointing.async_files import BackgroundFiles, collect_thread_errors, sync_and_checksum
from ascend_cpt.backend.checkpointing.node_local import name_files, save_own_shards
from ascend_cpt.backend.checkpointing.shard_map import make_shard_map
from ascend_cpt.backend.checkpointing.share_checksums import share_checksums
from ascend_cpt.backend.collectives import is_pure_data_parallel, sum_over_ranks, wait_for_ranks
from ascend_cpt.checkpoint.best import find_best, mark_best
from ascend_cpt.checkpoint.full_disk import report_full_disk
from ascend_cpt.checkpoint.locate import remove_old_checkpoints
from ascend_cpt.checkpoint.state import STATE_NAME, RunState, write_state
from ascend_cpt.errors import CheckpointError
from ascend_cpt.files import sync_folder, write_text
from ascend_cpt.recipe.budget import Budget
from ascend_cpt.weights.mindformers_folder import METADATA_NAME

logger = logging.getLogger(__name__)

PREFIX = "cpt"
KEEP_ALL = 10**9  # old checkpoints are removed here, because MindFormers ignores those from earlier launches


@dataclass(frozen=True, kw_only=True)
class KeepBest:
    """Keeps the `num_best` checkpoints with the lowest of `read_values()`: step → recorded value."""

    num_best: int
    read_values: Callable[[], Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A step whose state file is not written yet, with this rank's files and the thread, if any, waiting for them."""

    step: int
    folder: Path
    files: tuple[Path, ...]
    background: BackgroundFiles | None


class CheckpointWriter:
    """Saves a step's weights, optimizer and state. The state is written last and marks the step complete.

    One rank completes each folder: rank 0 with shared storage, otherwise the first rank on each node. All ranks must
    call each method at the same steps.
    """

    def __init__(
        self,
        root: Path,
        *,
        initial_state: RunState,
        budget: Budget,
        keep_last: int,
        keep_every_steps: int | None,
        keep_best: KeepBest | None = None,
        shared: bool,
        completes: bool,
        rank: int,
        num_ranks: int,
        background: bool = False,
    ) -> None:
        self._root, self._state = root, initial_state
        self._budget = budget
        self._keep_last, self._keep_every_steps = keep_last, keep_every_steps
        self._keep_best = keep_best
        self._shared, self._completes = shared, completes
        self._rank, self._num_ranks = rank, num_ranks
        self._background = background
        self._pending: _Pending | None = None
        self._shard_map: tuple[str, ...] | None = None
        if background:
            collect_thread_errors()

    def save(self, step: int, cb_params: Any, *, wait: bool = True) -> Path:
        """Save the training network of `cb_params` as step `step` and return the folder.

        Without `wait`, a background save continues after this returns, and `advance` or `finish` completes it.

        Raises:
            CheckpointError: when the disk is full; earlier complete checkpoints are not touched.
        """
        self.finish()
        folder = Path(get_checkpoint_iter_dir(str(self._root), step))
        with self._reporting_full_disk(folder):
            files = self._write(folder, step, cb_params)
            self._pending = _Pending(
                step=step,
                folder=folder,
                files=files,
                background=BackgroundFiles(files) if self._background else None,
            )
        if wait or not self._background:
            self.finish()
        return folder

    def advance(self) -> None:
        """Complete a background save if all ranks have written their files.

        Raises:
            CheckpointError: when the disk is full.
        """
        if self._pending is None:
            return
        assert self._pending.background is not None
        num_writing = sum_over_ranks(np.array([not self._pending.background.are_done]), self._num_ranks)
        if num_writing[0] == 0:
            self.finish()

    def finish(self) -> None:
        """Wait for a background save and complete its step.

        Raises:
            CheckpointError: when the disk is full.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        with self._reporting_full_disk(pending.folder):
            own = pending.background.wait() if pending.background else sync_and_checksum(pending.files)
            if is_pure_data_parallel():
                wait_for_ranks(self._num_ranks)
                checksums = own
            else:
                checksums = share_checksums(own, prefix=PREFIX, rank=self._rank, num_ranks=self._num_ranks)
            if self._completes:
                self._complete(pending.folder, pending.step, checksums)
        wait_for_ranks(self._num_ranks)
        # Not earlier: before the barrier, an older step may be the newest one complete on every node.
        if self._completes:
            self._remove_old(pending.folder)

    @contextmanager
    def _reporting_full_disk(self, folder: Path) -> Iterator[None]:
        """Raise CheckpointError when the disk is full, and remove the incomplete folder."""
        try:
            with report_full_disk(folder, "saving"):
                yield
        except CheckpointError:
            # If several ranks write, others may still be writing to the folder.
            if self._completes and is_pure_data_parallel() and not (folder / STATE_NAME).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _write(self, folder: Path, step: int, cb_params: Any) -> tuple[Path, ...]:
        """Write a step's files. Return this rank's files, which a background thread may still be writing."""
        # Not `train_network`, which in sink mode is a wrapper that fetches the data.
        wrapper = cb_params.network
        common = CommonInfo(
            step_num=step,
            epoch_num=cb_params.cur_epoch_num,
            global_step=int(wrapper.optimizer.global_step.asnumpy().reshape(-1)[0]),
            loss_scale=float(cb_params.net_outputs[2].asnumpy().reshape(-1)[0]),
            # The next step's batch size: MindFormers rescales the step if this differs from the launch's size.
            global_batch_size=self._budget.at(step).global_batch_size,
        )
        if is_pure_data_parallel():
            return self._save_whole(folder, wrapper, common) if self._completes else ()
        if self._shared:
            save_checkpoint(
                iteration=step,
                network=wrapper.network,
                optimizer=wrapper.optimizer,
                async_save_manager=AsyncSaveManager("thread") if self._background else None,
                common_info=common,
                keep_max_num=KEEP_ALL,
                user_prefix=PREFIX,
                save_checkpoint_path=str(self._root),
                sharded_tensor_metas=None,  # MindFormers uses all ranks' layouts only to write metadata.json
            )
            if self._completes:
                self._write_shard_map(folder, wrapper)
        else:
            self._save_on_node(folder, wrapper, common)
        return name_files(folder, PREFIX, self._rank, self._num_ranks)

    def _save_on_node(self, folder: Path, wrapper: ms.nn.Cell, common: CommonInfo) -> None:
        """Save every rank's shards on its node."""
        if self._completes:
            _make_empty(folder)
        wait_for_ranks(self._num_ranks)
        save_own_shards(
            folder,
            wrapper.network,
            wrapper.optimizer,
            prefix=PREFIX,
            rank=self._rank,
            num_ranks=self._num_ranks,
            background=self._background,
        )
        if self._completes:
            common.save_common(str(folder / "common.json"))
            self._write_shard_map(folder, wrapper)

    def _write_shard_map(self, folder: Path, wrapper: ms.nn.Cell) -> None:
        """Write metadata.json. Its text is made once, because layouts do not change during a launch."""
        if self._shard_map is None:
            self._shard_map = make_shard_map(
                wrapper, prefix=PREFIX, model_names=wrapper.network.parameters_dict(), num_ranks=self._num_ranks
            )
        write_text(folder / METADATA_NAME, self._shard_map)

    def _save_whole(self, folder: Path, wrapper: ms.nn.Cell, common: CommonInfo) -> tuple[Path, ...]:
        """Save the whole model from one rank.

        Every rank has the same parameters, and MindFormers has no layout by which to shard them.
        """
        _make_empty(folder)
        save_own_shards(
            folder,
            wrapper.network,
            wrapper.optimizer,
            prefix=PREFIX,
            rank=0,
            num_ranks=1,
            background=self._background,
        )
        common.save_common(str(folder / "common.json"))
        return name_files(folder, PREFIX, 0, 1)

    def _complete(self, folder: Path, step: int, checksums: Mapping[str, str]) -> None:
        """Write the state of a step whose files are written. Ranks have flushed the files in `checksums` to disk."""
        paths = [path for path in sorted(folder.iterdir()) if path.name != STATE_NAME]
        # metadata.json and common.json.
        checksums = sync_and_checksum([path for path in paths if path.name not in checksums]) | dict(checksums)
        # Older steps are deleted next, so the state must not survive a power failure without its files.
        for parent in (folder, self._root, self._root.parent):
            sync_folder(parent)
        rows = self._budget.count_rows(step)
        state = dataclasses.replace(
            self._state,
            step=step,
            position=rows,
            tokens=rows * self._state.fingerprint["seq_length"],
            files={path.name: path.stat().st_size for path in paths},
            checksums={path.name: checksums[path.name] for path in paths},
        )
        write_state(folder, state)
        write_text(Path(get_checkpoint_tracker_filename(str(self._root))), str(step))

    def _remove_old(self, newest: Path) -> None:
        best: list[Path] = []
        if self._keep_best is not None:
            best = find_best(self._root, self._keep_best.read_values(), self._keep_best.num_best)
            if best:
                mark_best(self._root, best[0])
        removed = remove_old_checkpoints(
            self._root, self._keep_last, keep=newest, keep_every_steps=self._keep_every_steps, best=best
        )
        for folder in removed:
            logger.info("removed the old checkpoint %s", folder)


def _make_empty(folder: Path) -> None:
    """Create a step's folder, first removing an incomplete or damaged one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def load_whole_checkpoints() -> None:
    """Make every rank load a whole checkpoint, as saved by pure data parallelism (CPU only).

    With several ranks, MindFormers requires a layout for each rank's shards, but there is none here.
    """
    checkpoint_module: Any = importlib.import_module("mindformers.checkpoint.checkpoint")
    checkpoint_module.get_real_group_size = lambda: 1
