"""Background saving with a failing or slow disk."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import psutil
import pytest
from mindspore import nn
from safetensors import SafetensorError

from ascend_cpt.backend.checkpointing import shard_files
from ascend_cpt.backend.checkpointing.background import HostBuffer
from ascend_cpt.backend.checkpointing.writer import CheckpointWriter
from ascend_cpt.checkpoint.checksums import checksum_file
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
    """Delay writing all files until an event."""
    save_file = shard_files.save_file

    def save_later(tensors: Any, name: str, **settings: Any) -> None:
        assert released.wait(WAIT_S)
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
    while writer.is_saving:
        writer.advance()
    assert list(list_complete(tmp_path)[0]) == [3]
    saved = ms.load_checkpoint(str(next(folder.glob("cpt-model-*"))), format="safetensors")
    assert np.array_equal(saved[weight.name].asnumpy(), before)
    saved = ms.load_checkpoint(str(next(folder.glob("cpt-opt-*"))), format="safetensors")
    assert np.array_equal(saved[moment.name].asnumpy(), moment_before)
    save_step(4)
    assert writer.is_saving
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


class MixedCell(nn.Cell):
    """Parameters of several types and shapes."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        generator = np.random.default_rng(0)
        for name, shape, dtype in (
            ("b", (3, 5), ms.float32),
            ("a", (), ms.float32),
            ("c", (7,), ms.bfloat16),
            ("d", (2, 0), ms.float16),
            ("e", (1,), ms.int32),
        ):
            values = ms.Tensor(generator.standard_normal(shape).astype(np.float32) * 9)
            setattr(self, name, ms.Parameter(values.astype(dtype), name=f"{prefix}.{name}"))


def test_files_have_the_bytes_that_mindspore_writes(tmp_path: Path) -> None:
    network, optimizer = MixedCell("model"), MixedCell("adam")
    files = shard_files.name_files(tmp_path, "cpt", 1, 2)
    shards = shard_files.read_shards(network, optimizer)
    buffer = HostBuffer()
    copies = buffer.copy(shards)
    for source, copy in zip(shards, copies, strict=True):
        assert list(source) == list(copy)
        for name in source:
            assert copy[name].dtype == source[name].dtype and not np.shares_memory(copy[name], source[name])
    for part in (shards, copies, buffer.copy(shards)):
        checksums = shard_files.write_shards(files, part)
        for path, cell in zip(files, (network, optimizer), strict=True):
            expected = tmp_path / "expected.safetensors"
            ms.save_checkpoint(cell, str(expected.with_suffix("")), integrated_save=False, format="safetensors")
            assert path.read_bytes() == expected.read_bytes()
            assert path.stat().st_mode == expected.stat().st_mode
            assert checksums[path.name] == checksum_file(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["expected.safetensors", *checksums])


def test_copies_use_the_same_memory_again(wrapper: TrainOneStep) -> None:
    buffer = HostBuffer()
    shards = shard_files.read_shards(wrapper.network, wrapper.optimizer)
    first, second = buffer.copy(shards)[1], buffer.copy(shards)[1]
    assert all(np.shares_memory(first[name], second[name]) for name in shards[1])


def test_too_little_host_memory_is_a_warning(
    tmp_path: Path, wrapper: TrainOneStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    make_writer(tmp_path, keep_last=3, background=True, warn=warnings.append).prepare(wrapper)
    assert warnings == []
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    make_writer(tmp_path, keep_last=3, warn=warnings.append).prepare(wrapper)
    assert warnings == [], "saving in the foreground needs no copy"
    make_writer(tmp_path, keep_last=3, background=True, warn=warnings.append).prepare(wrapper)
    assert len(warnings) == 1 and warnings[0].startswith(
        "cpt.checkpoint.background needs 0.0 GB of host memory on this node (1 x 0.0 GB), but only 0.0 GB are free"
    )


@pytest.mark.parametrize("background", [False, True])
def test_files_that_cannot_be_written_stop_the_run(tmp_path: Path, background: bool) -> None:
    """With a real limit instead of a full disk."""
    writer = make_writer(tmp_path, keep_last=3, background=background)
    small = SimpleNamespace(network=TrainOneStep(), cur_epoch_num=1, net_outputs=OUTPUTS)
    writer.save(3, small)
    large = TrainOneStep()
    large.network = nn.Dense(512, 512)
    parameters = SimpleNamespace(network=large, cur_epoch_num=1, net_outputs=OUTPUTS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="iteration_00000004: the file is too large while saving; free space"):
            writer.save(4, parameters)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(list_complete(tmp_path)[0]) == [3] and not (tmp_path / "iteration_00000004").exists()
    writer.save(5, parameters)
    assert list(list_complete(tmp_path)[0]) == [5, 3]
