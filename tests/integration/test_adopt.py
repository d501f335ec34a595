"""Datasets of other programs: files of MindSpore's writer are adopted, and training reads them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindspore.mindrecord import FileWriter

from ascend_cpt.backend.training.data_loader import PackedRows
from ascend_cpt.data.packed.manifest import load_manifest
from ascend_cpt.data.packed.mindrecord import iter_rows
from ascend_cpt.data.packed.token_stream import iter_columns, read_layout
from tests.integration.conftest import EOD_ID, SEQ_LENGTH, VOCAB_SIZE, read_history, run_command

ADOPT = [sys.executable, "tools/inspect_data.py", "adopt"]


def train(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Train in one process. Compiling takes minutes on a busy machine."""
    return run_command([sys.executable, "run_cpt.py", "--config", str(config), *arguments], timeout_s=900)


def write(path: Path, columns: dict[str, tuple[str, Any]], num_files: int = 1) -> None:
    """Write a set of files with columns (type, rows), as MindFormers' preprocessing scripts do."""
    writer = FileWriter(str(path), num_files)
    writer.add_schema({name: {"type": kind, "shape": [-1]} for name, (kind, _) in columns.items()}, "wiki")
    names, arrays = list(columns), [values for _, values in columns.values()]
    writer.write_raw_data([dict(zip(names, row, strict=True)) for row in zip(*arrays, strict=True)])
    writer.commit()


def make_rows(num_rows: int, length: int) -> np.ndarray:
    steps = np.random.default_rng(0).integers(1, 7, (num_rows, 1))
    rows = (20 + (np.arange(length) * steps) % 100).astype(np.int32)
    rows[:, ::50] = EOD_ID
    return rows


def test_files_of_mindspore_are_read_as_mindspore_reads_them(tmp_path: Path, tokenizer: Path) -> None:
    rows = make_rows(11, 96)
    labels = np.where(rows % 5 == 0, -100, rows * 300).astype(np.int64)
    columns = {
        "input_ids": ("int64", rows.astype(np.int64)),
        "labels": ("int64", labels),
        "attention_mask": ("float32", np.ones(rows.shape, np.float32)),
    }
    write(tmp_path / "x.mindrecord", columns, num_files=2)
    path = tmp_path / "x.mindrecord1"
    assert read_layout(path).arrays == {"attention_mask": "float32", "input_ids": "int64", "labels": "int64"}
    found = list(iter_columns(path, ["input_ids", "labels"]))
    assert (np.stack([row["input_ids"] for row in found]) == np.concatenate(list(iter_rows(path)))).all()
    assert [row["labels"].tolist() in labels.tolist() for row in found] == [True] * len(found)
    refused = run_command([*ADOPT, str(path), "--tokenizer", str(tokenizer)])
    assert (refused.returncode, "labels are neither" in refused.stderr) == (2, True), refused.stderr
    adopted = run_command([*ADOPT, str(path), "--tokenizer", str(tokenizer), "--ignore-labels"])
    assert "11 rows of 96, 1056 tokens" in adopted.stdout, adopted.stderr
    manifest = load_manifest(tmp_path / "x")
    read = PackedRows([manifest], 96).read(np.zeros(11, np.int64), np.arange(11))
    assert read.shape == (11, 97)
    assert sorted(read[:, :96].tolist()) == sorted(rows.tolist())
    assert set(read[:, 96].tolist()) == {manifest.tokenizer.pad_id}, "no label for the last token"
    verified = run_command([sys.executable, "tools/inspect_data.py", str(path), "--verify"])
    assert "verified" in verified.stdout, verified.stderr


@pytest.mark.slow
@pytest.mark.parametrize("has_labels", [False, True])
def test_training_on_a_dataset_of_mindformers(
    tmp_path: Path, tokenizer: Path, write_config: Callable[..., Path], has_labels: bool
) -> None:
    """The command of MindFormers' page names the command to run, and trains once that was run."""
    length = SEQ_LENGTH if has_labels else SEQ_LENGTH + 1
    rows = make_rows(200, length)
    columns = {"input_ids": ("int32", rows)} | ({"labels": ("int32", rows)} if has_labels else {})
    path = tmp_path / "wiki4096.mindrecord"
    write(path, columns)
    config = write_config(validation=None)
    arguments = ["--train_dataset_dir", str(path), "--run_mode", "train", "--use_parallel", "False"]
    refused = train(config, *arguments)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert f"python tools/inspect_data.py adopt {path} --tokenizer TOKENIZER" in refused.stderr
    adopted = run_command([*ADOPT, str(path), "--tokenizer", str(tokenizer)])
    assert adopted.returncode == 0, adopted.stderr
    result = train(config, *arguments)
    assert result.returncode == 0, result.stderr
    losses = [entry[2] for entry in read_history(tmp_path / "output/run") if entry[0] == "step"]
    assert len(losses) == 20
    assert losses[-1] < losses[0] < np.log(VOCAB_SIZE) + 1
