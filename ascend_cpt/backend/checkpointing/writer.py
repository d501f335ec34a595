"""Writes checkpoints in MindFormers' new format, and the state file that marks them complete."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from mindformers.checkpoint.checkpoint import CommonInfo
from mindformers.checkpoint.utils import get_checkpoint_iter_dir, get_checkpoint_tracker_filename
from mindspore import nn

from ascend_cpt.backend.checkpointing.background import HostBuffer, Result, Task, Tensors, count_buffer_bytes
from ascend_cpt.backend.checkpointing.shard_files import name_files, read_shards, write_shards
from ascend_cpt.backend.checkpointing.shard_map import make_shard_map
from ascend_cpt.backend.checkpointing.share_checksums import share_checksums
from ascend_cpt.backend.collectives import is_on_cpu, is_pure_data_parallel, sum_over_ranks, wait_for_ranks
from ascend_cpt.checkpoint.best import find_best, mark_best
from ascend_cpt.checkpoint.checksums import checksum_file
from ascend_cpt.checkpoint.full_disk import report_full_disk
from ascend_cpt.checkpoint.locate import remove_old_checkpoints
from ascend_cpt.checkpoint.state import STATE_NAME, RunState, write_state
from ascend_cpt.errors import CheckpointError
from ascend_cpt.files import sync_file, sync_folder, write_text
from ascend_cpt.recipe.budget import Budget
from ascend_cpt.weights.mindformers_folder import METADATA_NAME

logger = logging.getLogger(__name__)

PREFIX = "cpt"
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class KeepBest:
    """Keeps the `num_best` checkpoints with the lowest of `read_values()`: step → recorded value."""

    num_best: int
    read_values: Callable[[], Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A step that is being saved: this rank's files, and then, on the rank that completes the folder, its state."""

    step: int
    folder: Path
    files: Task[dict[str, str]]
    completion: Task[None] | None = None


class CheckpointWriter:
    """Saves a step's weights, optimizer and state. The state is written last and marks the step complete.

    One rank completes each folder: rank 0 with shared storage, otherwise the first rank on each node. All ranks must
    call each method at the same steps.

    If only adapters are trained, `saved_weights` are their names, and the frozen weights are not saved.

    With `background`, `save` only copies this rank's tensors to host memory. A thread writes the files, computes their
    checksums, writes the state and removes old checkpoints. There is one copy, so a save waits for the previous one.
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
        num_local_ranks: int = 1,
        warn: Callable[[str], None] | None = None,
        saved_weights: Collection[str] | None = None,
    ) -> None:
        self._root, self._state = root, initial_state
        self._budget = budget
        self._keep_last, self._keep_every_steps = keep_last, keep_every_steps
        self._keep_best = keep_best
        self._shared, self._completes = shared, completes
        self._rank, self._num_ranks = rank, num_ranks
        self._background = background
        self._num_local_ranks, self._warn = num_local_ranks, warn
        self._saved_weights = saved_weights
        self._pending: _Pending | None = None
        self._removal: Task[None] | None = None
        self._shard_map: tuple[str, ...] | None = None
        self._buffer = HostBuffer()
        self._reservation: Task[None] | None = None

    @property
    def is_saving(self) -> bool:
        """Whether a background save is not complete. This is the same on every rank."""
        return self._pending is not None

    def prepare(self, wrapper: nn.Cell) -> None:
        """Reserve host memory for background saves, and warn if the node does not have enough.

        Called once, after the first step, when the parameters have the shapes of this rank's shards.
        """
        if not self._background or not self._writes_files:
            return
        parameters = {parameter.name: parameter for parameter in wrapper.get_parameters()}
        if self._saved_weights is not None:
            frozen = wrapper.network.parameters_dict().keys() - set(self._saved_weights)
            parameters = {name: parameter for name, parameter in parameters.items() if name not in frozen}
        needed_bytes = count_buffer_bytes(parameter.size * parameter.itemsize for parameter in parameters.values())
        if is_on_cpu():
            self._reservation = Task(lambda: self._buffer.reserve(needed_bytes), background=True)
        num_copies = 1 if is_pure_data_parallel() else self._num_local_ranks
        free_bytes = psutil.virtual_memory().available
        if num_copies * needed_bytes <= free_bytes or self._warn is None:
            return
        self._warn(
            f"cpt.checkpoint.background needs {num_copies * needed_bytes / GB:.1f} GB of host memory on this node "
            f"({num_copies} x {needed_bytes / GB:.1f} GB), but only {free_bytes / GB:.1f} GB are free: saving may run "
            "out of memory; set cpt.checkpoint.background: False"
        )

    @property
    def _writes_files(self) -> bool:
        return self._completes or not is_pure_data_parallel()

    def save(self, step: int, cb_params: Any, *, wait: bool = True) -> Path:
        """Save the training network of `cb_params` as step `step` and return the folder.

        Without `wait`, a background save continues after this returns, and `advance` or `finish` completes it.

        Raises:
            CheckpointError: when the disk is full; earlier complete checkpoints are not touched.
        """
        self.finish()
        folder = Path(get_checkpoint_iter_dir(str(self._root), step))
        with self._reporting_full_disk(folder):
            files = self._start_files(folder, step, cb_params)
        self._pending = _Pending(step=step, folder=folder, files=files)
        if wait or not self._background:
            self.finish()
        return folder

    def advance(self) -> bool:
        """Continue a background save: complete its step once all ranks have written their files.

        Returns:
            Whether there was anything to do.

        Raises:
            CheckpointError: when the disk is full.
        """
        pending = self._pending
        if pending is None:
            return False
        task = pending.completion or pending.files
        if sum_over_ranks(np.array([not task.is_done]), self._num_ranks)[0]:
            return False
        if pending.completion is None:
            self._pending = dataclasses.replace(pending, completion=self._start_completion(pending))
        else:
            self._end(pending, pending.completion)
        return True

    def finish(self) -> None:
        """Wait for a background save, complete its step and remove old checkpoints.

        Raises:
            CheckpointError: when the disk is full.
        """
        if (pending := self._pending) is not None:
            completion = pending.completion or self._start_completion(pending)
            with self._reporting_full_disk(pending.folder):
                completion.wait()
            wait_for_ranks(self._num_ranks)
            self._end(pending, completion)
        if self._removal is not None:
            self._removal.wait()
            self._removal = None

    def _start_completion(self, pending: _Pending) -> Task[None]:
        """Exchange the checksums of all files, and start writing the state on the rank that completes the folder."""
        self._pending = None  # if this fails, the save has failed
        with self._reporting_full_disk(pending.folder):
            checksums = pending.files.wait()
            if not is_pure_data_parallel():
                checksums = share_checksums(checksums, prefix=PREFIX, rank=self._rank, num_ranks=self._num_ranks)
            return self._run(
                lambda: self._complete(pending.folder, pending.step, checksums) if self._completes else None
            )

    def _end(self, pending: _Pending, completion: Task[None]) -> None:
        """Start removing old checkpoints. The step is complete on every node."""
        self._pending = None
        with self._reporting_full_disk(pending.folder):
            completion.wait()
            if self._completes:
                # Read here: training appends to the file with the values.
                values = self._keep_best.read_values() if self._keep_best is not None else {}
                self._removal = self._run(lambda: self._remove_old(pending.folder, values))

    def _run(self, work: Callable[[], Result]) -> Task[Result]:
        return Task(work, background=self._background)

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

    def _start_files(self, folder: Path, step: int, cb_params: Any) -> Task[dict[str, str]]:
        """Copy this rank's parameters and start writing them. The task returns the files' checksums."""
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
        if self._completes:
            _make_empty(folder)
        if not self._writes_files:
            return Task(dict, background=False)
        shard_map: tuple[str, ...] = ()
        rank, num_ranks = 0, 1  # pure data parallelism: one rank saves the whole model
        if not is_pure_data_parallel():
            rank, num_ranks = self._rank, self._num_ranks
            wait_for_ranks(num_ranks)
            os.listdir(self._root)  # NFS: look up the new folder again
            if self._completes:
                shard_map = self._make_shard_map(wrapper)
        files = name_files(folder, PREFIX, rank, num_ranks)
        shards = self._copy_shards(wrapper)

        def write() -> dict[str, str]:
            checksums = write_shards(files, shards)
            if self._completes:
                common.save_common(str(folder / "common.json"))
            if shard_map:
                write_text(folder / METADATA_NAME, shard_map)
            return checksums

        return self._run(write)

    def _copy_shards(self, wrapper: nn.Cell) -> tuple[Tensors, ...]:
        """Return this rank's shards of the model and the optimizer. In the background, training cannot change them."""
        shards = read_shards(wrapper.network, wrapper.optimizer, self._saved_weights)
        if not self._background or not is_on_cpu():
            return shards
        if self._reservation is not None:
            self._reservation.wait()
        return self._buffer.copy(shards)

    def _make_shard_map(self, wrapper: nn.Cell) -> tuple[str, ...]:
        """Return the text of metadata.json. It is made once, because layouts do not change during a launch."""
        if self._shard_map is None:
            self._shard_map = make_shard_map(
                wrapper,
                prefix=PREFIX,
                model_names=wrapper.network.parameters_dict(),
                num_ranks=self._num_ranks,
                saved_weights=self._saved_weights,
            )
        return self._shard_map

    def _complete(self, folder: Path, step: int, checksums: Mapping[str, str]) -> None:
        """Write the state of a step whose files are written. Ranks have flushed the files in `checksums` to disk."""
        paths = [path for path in sorted(folder.iterdir()) if path.name != STATE_NAME]
        # metadata.json and common.json.
        for path in paths:
            if path.name not in checksums:
                sync_file(path)
                checksums = {**checksums, path.name: checksum_file(path)}
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

    def _remove_old(self, newest: Path, values: Mapping[int, float]) -> None:
        best: list[Path] = []
        if self._keep_best is not None:
            best = find_best(self._root, values, self._keep_best.num_best)
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
