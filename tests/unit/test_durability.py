"""What is on the disk when: data before the names and manifests that refer to it, and those before anything is deleted.

A fake records the order of the system calls; the calls are made as well.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_cpt.checkpoint.gather import gather_checkpoint
from ascend_cpt.data.packed.manifest import load_manifest
from ascend_cpt.data.pipeline import preprocess
from ascend_cpt.data.settings import PreprocessSettings
from ascend_cpt.errors import CheckpointError
from ascend_cpt.files import write_folder_whole, write_text
from ascend_cpt.weights.folder_writer import create_folder, name_hf_file, write_config, write_shards
from ascend_cpt.weights.safetensors_file import TensorInfo
from tests.unit.checkpoint.test_gather import make_part
from tests.unit.data.test_tokenizing import save_tokenizer

Call = tuple[str, str]


class RecordingDisk:
    """Records (call, name) of every flush, rename and removal. Temporary names are cut to the name they stand for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Call] = []
        fsync, replace, rename, unlink, rmtree = os.fsync, os.replace, os.rename, os.unlink, shutil.rmtree

        def record_fsync(descriptor: int) -> None:
            self._add("sync", os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def record_move(move: Callable[..., None]) -> Callable[..., None]:
            def call(source: Any, target: Any, **settings: Any) -> None:
                self._add("rename", target)
                move(source, target, **settings)

            return call

        def record_removal(remove: Callable[..., None]) -> Callable[..., None]:
            def call(path: Any, *arguments: Any, **settings: Any) -> None:
                if os.path.lexists(path) and "dir_fd" not in settings:
                    self._add("remove", path)
                remove(path, *arguments, **settings)

            return call

        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(os, "replace", record_move(replace))
        monkeypatch.setattr(os, "rename", record_move(rename))
        monkeypatch.setattr(os, "unlink", record_removal(unlink))
        monkeypatch.setattr(shutil, "rmtree", record_removal(rmtree))

    def _add(self, call: str, path: Any) -> None:
        name = Path(path).name
        if name.endswith(".tmp"):
            name = name[1:].rpartition(".tmp")[0].rpartition(".")[0]
        self.calls.append((call, name))

    def assert_order(self, *expected: Call) -> None:
        """Check that these calls were made in this order, possibly with others between them."""
        rest: Iterator[Call] = iter(self.calls)
        for call in expected:
            assert call in rest, f"{call} is not after those before it in {expected}:\n{self.calls}"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> RecordingDisk:
    return RecordingDisk(monkeypatch)


def test_a_file_is_flushed_before_its_rename_and_the_folder_after(tmp_path: Path, disk: RecordingDisk) -> None:
    write_text(tmp_path / "a.json", "{}")
    assert disk.calls == [("sync", "a.json"), ("rename", "a.json"), ("sync", tmp_path.name)]


def test_an_exported_folder(tmp_path: Path, disk: RecordingDisk) -> None:
    info = TensorInfo(name="a", dtype="F32", shape=(2,))
    with create_folder(tmp_path / "exported") as folder:
        write_shards(folder, [info], [("a", np.zeros(2, np.float32))], name_file=name_hf_file, max_shard_bytes=100)
        write_config(folder, {}, "float32")
    for name in ("model.safetensors", "config.json"):
        disk.assert_order(("sync", name), ("sync", "exported"), ("rename", "exported"), ("sync", tmp_path.name))


def test_a_gathered_checkpoint(tmp_path: Path, disk: RecordingDisk) -> None:
    parts = [
        make_part(tmp_path / "a/iteration_00000010", range(2)),
        make_part(tmp_path / "b/iteration_00000010", range(2, 4)),
    ]
    disk.calls.clear()
    gather_checkpoint(parts, tmp_path / "all/gathered")
    for name in [*(f"cpt-model-{rank:07d}-0000004.safetensors" for rank in range(4)), "common.json"]:
        disk.assert_order(
            ("sync", name),
            ("sync", "gathered"),  # the files' names, before the state that lists them
            ("sync", "cpt_state.json"),
            ("rename", "cpt_state.json"),
            ("sync", "gathered"),
            ("rename", "gathered"),
            ("sync", "all"),
        )


@pytest.mark.parametrize("output_format", ["mindrecord", "mmap"])
def test_a_packed_dataset(tmp_path: Path, disk: RecordingDisk, output_format: str) -> None:
    save_tokenizer(tmp_path / "tokenizer", pad_token="<|pad|>")
    lines = [json.dumps({"text": f"the fox {number} and the dog"}) for number in range(50)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    settings = PreprocessSettings(
        inputs=(str(tmp_path / "in.jsonl"),),
        output_prefix=str(tmp_path / "out/x"),
        tokenizer_path=str(tmp_path / "tokenizer"),
        seq_length=16 if output_format == "mindrecord" else 0,
        output_format=output_format,
        num_shards=2,
    )
    disk.calls.clear()
    preprocess(settings)
    manifest = load_manifest(tmp_path / "out/x_text_document")
    for name in {file for shard in manifest.shards for file in (shard.file, shard.index_file)}:
        disk.assert_order(
            ("sync", name),
            ("rename", name),
            ("sync", "out"),
            ("sync", "x_text_document.manifest.json"),
            ("rename", "x_text_document.manifest.json"),
            ("sync", "out"),
            ("remove", "x.work"),
        )


def test_two_processes_may_write_the_same_folder(tmp_path: Path) -> None:
    target = tmp_path / "exported"
    with create_folder(target) as first:
        with pytest.raises(CheckpointError, match="cannot be written: .*not empty"):
            with create_folder(target) as second:
                assert first != second and first.is_dir(), "the folder of another process is not removed"
                (second / "b").write_text("2")
                (first / "a").write_text("1")
                shutil.copytree(first, target)
        shutil.rmtree(target)
    assert os.listdir(tmp_path) == ["exported"] and os.listdir(target) == ["a"]


def test_the_folder_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    abandoned = tmp_path / f".all[1].{'0' * 32}.tmp"
    other = tmp_path / f".all1.{'0' * 32}.tmp"
    for folder in (abandoned, other):
        folder.mkdir()
        (folder / "a").write_text("1")
    with write_folder_whole(tmp_path / "all[1]") as temporary:
        (temporary / "b").write_text("2")
        assert not abandoned.exists() and other.exists()
    with pytest.raises(RuntimeError), write_folder_whole(tmp_path / "c"):
        raise RuntimeError("stop")
    assert sorted(os.listdir(tmp_path)) == [other.name, "all[1]"]
