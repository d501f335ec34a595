"""Damaged checkpoints and data in real runs: passed over or refused by name, and never trained on."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.data.packed.manifest import load_manifest
from ascend_cpt.data.packed.mindrecord_writer import HEADER_BYTES, PAGE_BYTES
from ascend_cpt.weights.safetensors_file import SafetensorsFile
from tests.integration.conftest import SEQ_LENGTH, read_history, run_command

Completed = subprocess.CompletedProcess[str]
NUM_STEPS = 6
DIFFERS = "damaged: its content does not match the checksum recorded when it was saved"
TOOL = [sys.executable, "tools/convert_weights.py"]


@pytest.fixture
def config(tmp_path: Path, packed: Path, write_config: Callable[..., Path]) -> Path:
    """Return the configuration of a short run on its own copy of the data."""
    shutil.copytree(packed.parent, tmp_path / "data")
    return write_config(
        train_tokens=NUM_STEPS * 8 * SEQ_LENGTH,
        schedule={"peak_lr": 1e-3},
        sources={"train": {"path": str(tmp_path / "data" / packed.name)}},
        validation=None,
        checkpoint={"every": "2 steps", "keep_last": 3},
    )


def flip_exponents(folder: Path) -> Path:
    """Flip the lowest exponent bit of 4,096 weights of a checkpoint; return the file."""
    path = next(folder.glob("cpt-model-*"))
    file = SafetensorsFile(path)
    name = max(file.tensors, key=lambda name: file.tensors[name].num_elements)
    content = bytearray(path.read_bytes())
    weights = np.frombuffer(content, "<u4", 4096, offset=file._offsets[name])
    weights ^= np.uint32(1 << 23)
    path.unlink()  # a file may be a hard link
    path.write_bytes(content)
    return path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_agree_to_pass_over_a_damaged_checkpoint(
    config: Path, launch: Callable[..., Completed], tmp_path: Path, free_ports: list[int]
) -> None:
    def run(port: int, *arguments: str) -> str:
        result = launch(config, *arguments, port=port, log_dir=tmp_path / "log")
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    run(free_ports[0], "--set", "cpt.run_name=whole")
    run(free_ports[1], "--stop-at-step", "4")
    damaged = flip_exponents(tmp_path / "output/run/checkpoint/iteration_00000004")
    output = run(free_ports[2])
    assert output.count(f"skipped an unusable checkpoint: {damaged}: {DIFFERS}") == 1
    assert "continuing at step 2" in output
    assert read_history(tmp_path / "output/run") == read_history(tmp_path / "output/whole")


@pytest.mark.timeout(600)
def test_the_tools_pass_over_or_refuse_a_damaged_checkpoint(
    config: Path, train: Callable[..., Completed], tmp_path: Path
) -> None:
    run = tmp_path / "output/run"
    assert train(config, "--stop-at-step", "4").returncode == 0
    damaged = flip_exponents(run / "checkpoint/iteration_00000004")
    reason = f"{damaged}: {DIFFERS}"
    exported = run_command([*TOOL, "to-hf", str(run), str(tmp_path / "hf")])
    assert exported.returncode == 0 and f"skipped an unusable checkpoint: {reason}" in exported.stderr
    refused = run_command([*TOOL, "to-hf", str(damaged.parent), str(tmp_path / "hf2")])
    assert (refused.returncode, refused.stderr) == (2, f"error: {reason}; choose another step\n")
    gather = [sys.executable, "tools/gather_checkpoint.py", str(damaged.parent), "--output", str(tmp_path / "all")]
    refused = run_command(gather)
    assert refused.returncode == 2 and refused.stderr.startswith(f"error: {reason}; copy it again")
    assert run_command([*gather, "--no-verify"]).returncode == 0
    validate = ["--validation", f"held={tmp_path}/data/train_text_document", "--max-rows", "2"]
    evaluated = run_command([sys.executable, "tools/evaluate.py", str(run), *validate])
    assert evaluated.returncode == 0 and f"skipped an unusable checkpoint: {reason}" in evaluated.stdout
    refused = run_command([sys.executable, "tools/evaluate.py", str(damaged.parent), *validate])
    assert refused.returncode == 2 and f"error: {reason}; choose another step" in refused.stderr
    # What --no-verify is for: the damage is trained on.
    resumed = train(config, "--no-verify", "--stop-at-step", "5")
    assert resumed.returncode == 0 and "continuing at step 4" in resumed.stdout


def write_to_row(prefix: Path, row: int, at: int, change: Callable[[bytearray], None]) -> Path:
    """Change the bytes from `at` on of a row's entry, without changing the file's size."""
    manifest = load_manifest(prefix)
    path = manifest.folder / manifest.shards[0].file
    with closing(sqlite3.connect(f"{path}.db")) as connection:
        query = "SELECT PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES WHERE ROW_ID = ?"
        page, begin, end = connection.execute(query, (row,)).fetchone()
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + PAGE_BYTES * page + begin + at)
        content = bytearray(file.read(end - begin - at))
        change(content)
        file.seek(HEADER_BYTES + PAGE_BYTES * page + begin + at)
        file.write(content)
    return path


def test_damaged_data_is_refused(config: Path, train: Callable[..., Completed], tmp_path: Path) -> None:
    prefix = tmp_path / "data/train_text_document"

    def flip_tokens(content: bytearray) -> None:
        content[:] = bytes(value ^ 1 for value in content)

    path = write_to_row(prefix, 3, 12 + -(-(SEQ_LENGTH + 1) // 4), flip_tokens)
    refused = train(config)
    assert refused.returncode == 2, refused.stderr
    assert re.fullmatch(f"error: {path}: content differs from the checksum in .*\n", refused.stderr)
    assert train(config, "--no-verify", "--stop-at-step", "1").returncode == 0, "what --no-verify is for"


@pytest.mark.parametrize("place", ["count", "bitmap"])
def test_a_damaged_row_is_an_error_and_no_segmentation_fault(
    config: Path, train: Callable[..., Completed], tmp_path: Path, place: str
) -> None:
    prefix = tmp_path / "data/train_text_document"

    def damage(content: bytearray) -> None:
        content[:4] = (2**30).to_bytes(4, "big") if place == "count" else b"\xff" * 4

    for row in range(50):
        path = write_to_row(prefix, row, 8 if place == "count" else 12, damage)
    message = f"error: {path}: cannot be read (a row is damaged); copy it again with its index\n"
    for refused in (
        train(config, "--no-verify"),
        run_command([sys.executable, "tools/inspect_data.py", str(prefix), "--histogram"]),
    ):
        assert (refused.returncode, refused.stderr) == (2, message)
