"""Writing checkpoints in MindFormers' new format, and the state that makes one complete."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import mindspore as ms
from mindformers.checkpoint.checkpoint import CommonInfo, save_checkpoint
from mindformers.checkpoint.sharded_tensor import get_all_sharded_tensor
from mindformers.checkpoint.utils import (
    FileType,
    get_checkpoint_iter_dir,
    get_checkpoint_name,
    get_checkpoint_tracker_filename,
)

from ascend_cpt.backend.collective import is_pure_data_parallel, wait_for_ranks
from ascend_cpt.backend.full_disk import tell_full_disk
from ascend_cpt.backend.own_shards import save_common_files, save_own_shards
from ascend_cpt.files import write_text
from ascend_cpt.resume.locate import remove_old_checkpoints
from ascend_cpt.resume.state import STATE_NAME, RunState, write_state

logger = logging.getLogger(__name__)

PREFIX = "cpt"
TEMPORARY_NAME = ".{}.tmp"
KEEP_ALL = 10**9  # old ones are removed by us: MindFormers forgets those of earlier launches


class CheckpointWriter:
    """Saves weights, optimizer and state of a step; the state, written last, makes the step complete.

    One rank completes a folder: rank 0 where all nodes share it, otherwise the first rank of every node.
    """

    def __init__(
        self,
        root: Path,
        *,
        initial_state: RunState,
        global_batch_size: int,
        keep_last: int,
        keep_every_steps: int | None,
        shared: bool,
        completes: bool,
        rank: int,
        num_ranks: int,
    ) -> None:
        self._root, self._state = root, initial_state
        self._global_batch_size = global_batch_size
        self._keep_last, self._keep_every_steps = keep_last, keep_every_steps
        self._shared, self._completes = shared, completes
        self._rank, self._num_ranks = rank, num_ranks

    def save(self, step: int, cb_params: Any) -> Path:
        """Save the training network of `cb_params` as step `step` and return the folder.

        Raises:
            CheckpointError: when the disk is full; what was complete before is still there.
        """
        folder = Path(get_checkpoint_iter_dir(str(self._root), step))
        with tell_full_disk(folder, "saving"):
            self._write(folder, step, cb_params)
            wait_for_ranks(self._num_ranks)
            if self._completes:
                self._complete(folder, step)
        wait_for_ranks(self._num_ranks)
        # Not before: until here an older step may be the newest that is complete on every node.
        if self._completes:
            self._remove_old(folder)
        return folder

    def _write(self, folder: Path, step: int, cb_params: Any) -> None:
        """Write the files of a step, those of this rank or of all ranks."""
        # Not `train_network`: in sink mode that is a wrapper which fetches the data.
        wrapper = cb_params.network
        network, optimizer = wrapper.network, wrapper.optimizer
        common = CommonInfo(
            step_num=step,
            epoch_num=cb_params.cur_epoch_num,
            global_step=int(optimizer.global_step.asnumpy().reshape(-1)[0]),
            loss_scale=float(cb_params.net_outputs[2].asnumpy().reshape(-1)[0]),
            global_batch_size=self._global_batch_size,
        )
        if is_pure_data_parallel():
            if self._completes:
                self._save_whole(folder, network, optimizer, common)
        elif not self._shared:
            self._save_on_node(folder, wrapper, common)
        else:
            save_checkpoint(
                iteration=step,
                network=network,
                optimizer=optimizer,
                common_info=common,
                keep_max_num=KEEP_ALL,
                user_prefix=PREFIX,
                save_checkpoint_path=str(self._root),
                sharded_tensor_metas=get_all_sharded_tensor(network=wrapper),
            )

    def _save_on_node(self, folder: Path, wrapper: ms.nn.Cell, common: CommonInfo) -> None:
        """Save every rank's shards on its own node; the folder gets its final name with the first file."""
        if self._completes:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        wait_for_ranks(self._num_ranks)
        save_own_shards(
            folder, wrapper.network, wrapper.optimizer, prefix=PREFIX, rank=self._rank, num_ranks=self._num_ranks
        )
        sharded_tensors = get_all_sharded_tensor(network=wrapper)
        if self._completes:
            save_common_files(folder, wrapper.network, common, sharded_tensors, prefix=PREFIX)

    def _save_whole(self, folder: Path, network: ms.nn.Cell, optimizer: ms.nn.Cell, common: CommonInfo) -> None:
        """Save the whole model from one rank, under a temporary name until it is whole.

        Every rank holds the same parameters, for which MindFormers has no layout to save shards by.
        """
        temporary = folder.with_name(TEMPORARY_NAME.format(folder.name))
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            self._fill(temporary, network, optimizer, common)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _fill(self, folder: Path, network: ms.nn.Cell, optimizer: ms.nn.Cell, common: CommonInfo) -> None:
        model_names = set(network.parameters_dict())
        model_file = get_checkpoint_name(str(folder), PREFIX, 0, 1, FileType.MODEL)
        optimizer_file = get_checkpoint_name(str(folder), PREFIX, 0, 1, FileType.OPTIMIZER)
        ms.save_checkpoint(network, model_file, format="safetensors")
        ms.save_checkpoint(
            optimizer, optimizer_file, format="safetensors", choice_func=lambda name: name not in model_names
        )
        common.save_common(str(folder / "common.json"))

    def _complete(self, folder: Path, step: int) -> None:
        paths = [path for path in sorted(folder.iterdir()) if path.name != STATE_NAME]
        for path in paths:
            # The state must not outlive a failure of the power that its files do not: older steps are deleted next.
            with path.open("rb") as file:
                os.fsync(file.fileno())
        files = {path.name: path.stat().st_size for path in paths}
        rows = step * self._global_batch_size
        state = dataclasses.replace(
            self._state, step=step, position=rows, tokens=rows * self._state.fingerprint["seq_length"], files=files
        )
        write_state(folder, state)
        write_text(Path(get_checkpoint_tracker_filename(str(self._root))), str(step))

    def _remove_old(self, newest: Path) -> None:
        for unfinished in self._root.glob(TEMPORARY_NAME.format("*")):
            shutil.rmtree(unfinished)  # of a process that was killed
        removed = remove_old_checkpoints(
            self._root, self._keep_last, keep=newest, keep_every_steps=self._keep_every_steps
        )
        for folder in removed:
            logger.info("removed the old checkpoint %s", folder)


def load_whole_checkpoints() -> None:
    """Let every rank load a whole checkpoint, as pure data parallel saves them (CPU only).

    MindFormers asks for the layout of each rank's shards whenever there are several ranks; here there is none.
    """
    checkpoint_module: Any = importlib.import_module("mindformers.checkpoint.checkpoint")
    checkpoint_module.get_real_group_size = lambda: 1
