"""Background saving with a failing or slow disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from safetensors import SafetensorError

from ascend_cpt.backend.checkpointing import shard_files
from ascend_cpt.backend.checkpointing.writer import CheckpointWriter
from ascend_cpt.checkpoint.locate import list_complete
from ascend_cpt.errors import CheckpointError
from tests.integration.backend.test_callbacks import OUTPUTS, TrainOneStep, make_writer

WAIT_S = 10.0


@pytest.fixture
def wrapper() -> TrainOneStep:
    return TrainOneStep()


@pytest.fixture
def save(tmp_path: Path, wrapper: TrainOneStep) -> tuple[CheckpointWriter, Callable[[int], Path]]:
    """Return a writer and a function that saves a step with it in the background."""
    writer = make_writer(tmp_path, keep_last=3, background=True)
    parameters = SimpleNamespace(network=wrapper, cur_epoch_num=1, net_outputs=OUTPUTS)
    return writer, lambda step: writer.save(step, parameters, wait=False)


def hold(monkeypatch: pytest.MonkeyPatch, released: threading.Event) -> None:
    """Delay writing the optimizer's file until an event."""
    save_file = shard_files.save_file

    def save_later(tensors: Any, name: str, **settings: Any) -> None:
        assert "opt" not in name or released.wait(WAIT_S)
        save_file(tensors, name, **settings)

    monkeypatch.setattr(shard_files, "save_file", save_later)


def test_step_is_complete_only_when_its_files_are(
    save: tuple[CheckpointWriter, Callable[[int], Path]],
    wrapper: TrainOneStep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer, save_step = save
    released = threading.Event()
    hold(monkeypatch, released)
    weight = wrapper.network.weight
    before = weight.asnumpy().copy()
    folder = save_step(3)
    # Training continues and changes the tensors being saved, in place.
    weight.set_data(ms.Tensor(np.full(weight.shape, 7.0, np.float32)))
    moment = next(parameter for parameter in wrapper.optimizer.get_parameters() if "moment" in parameter.name)
    moment_before = moment.asnumpy().copy()
    moment.asnumpy()[...] = 7.0
    assert not np.array_equal(moment.asnumpy(), moment_before), "on a CPU asnumpy() shares the memory"
    writer.advance()
    assert list(list_complete(tmp_path)[0]) == []
    released.set()
    while not (folder / "cpt_state.json").exists():
        writer.advance()
    assert list(list_complete(tmp_path)[0]) == [3]
    saved = ms.load_checkpoint(str(next(folder.glob("cpt-model-*"))), format="safetensors")
    assert np.array_equal(saved[weight.name].asnumpy(), before)
    saved = ms.load_checkpoint(str(next(folder.glob("cpt-opt-*"))), format="safetensors")
    assert np.array_equal(saved[moment.name].asnumpy(), moment_before)
    save_step(4)
    save_step(5)  # waits for the previous save
    assert list(list_complete(tmp_path)[0]) == [4, 3]
    writer.finish()
    assert list(list_complete(tmp_path)[0]) == [5, 4, 3]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("part", ["model", "opt"])
def test_full_disk_in_the_background_stops_the_run_with_one_line(
    save: tuple[CheckpointWriter, Callable[[int], Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    writer, save_step = save
    save_step(3)
    writer.finish()
    save_file = shard_files.save_file

    def fail(tensors: Any, name: str, **settings: Any) -> None:
        if part in Path(name).name:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, name, **settings)

    monkeypatch.setattr(shard_files, "save_file", fail)
    folder = save_step(4)
    with pytest.raises(CheckpointError, match="iteration_00000004: the disk is full while saving; free space"):
        writer.finish()
    assert not folder.exists()
    assert list(list_complete(tmp_path)[0]) == [3]
