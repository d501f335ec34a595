"""`cpt.trainable`: the first rows of the embedding and the output layer, and all other weights, keep their values."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ascend_cpt.weights.mindformers_folder import MindFormersFolder
from tests.integration.conftest import SEQ_LENGTH, read_history, run_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
TIMEOUT_S = 900
FIRST_ROW = 300
EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
ROWS = [f"*word_embeddings.weight[{FIRST_ROW}:]", f"{OUTPUT}[{FIRST_ROW}:]"]


def write(write_config: Callable[..., Path], family: str, model: dict[str, Any], **changes: Any) -> Path:
    path = write_config(
        family,
        train_tokens=3 * 8 * SEQ_LENGTH,
        schedule={"peak_lr": 1e-2},
        validation=None,
        checkpoint={"every": "1 steps", "keep_last": 0},
        **changes,
    )
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["model"]["model_config"].update(model)
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def train(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command([sys.executable, "run_cpt.py", "--config", str(config), *arguments], timeout_s=TIMEOUT_S)


def read_first_and_last(run: Path) -> list[MindFormersFolder]:
    checkpoints = sorted((run / "checkpoint").glob("iteration_*"))
    assert len(checkpoints) == 3
    return [MindFormersFolder(checkpoint) for checkpoint in (checkpoints[0], checkpoints[-1])]


@pytest.mark.parametrize(
    ("family", "model", "changes"),
    [
        ("qwen3", {}, {}),
        ("qwen3", {"tie_word_embeddings": True}, {}),
        ("llama3", {}, {"loss_chunks": 4}),
        ("qwen2", {"tie_word_embeddings": True}, {"loss_chunks": 2}),
    ],
)
def test_only_the_last_rows_are_trained(
    family: str,
    model: dict[str, Any],
    changes: dict[str, Any],
    write_config: Callable[..., Path],
    tmp_path: Path,
) -> None:
    is_tied = "tie_word_embeddings" in model
    trainable = ROWS[:1] if is_tied else ROWS
    path = write(write_config, family, model, trainable=trainable, **changes)
    result = train(path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"rows 0 to {FIRST_ROW - 1} of {EMBEDDING}" in result.stdout
    first, last = read_first_and_last(tmp_path / "output/run")
    trained = {EMBEDDING} if is_tied else {EMBEDDING, OUTPUT}
    assert {name for name in first.tensors if not np.array_equal(first.read(name), last.read(name))} == trained
    for name in trained:
        before, after = first.read(name), last.read(name)
        assert np.array_equal(before[:FIRST_ROW], after[:FIRST_ROW])
        # Not all tokens occur in three batches.
        assert (before[FIRST_ROW:] != after[FIRST_ROW:]).any(axis=1).sum() > 150


def test_the_gradient_norm_is_that_of_the_trained_rows(write_config: Callable[..., Path], tmp_path: Path) -> None:
    norms, losses = [], []
    for name, trainable in (("all", []), ("rows", ROWS), ("whole", [EMBEDDING, OUTPUT]), ("none", [OUTPUT + "[511:]"])):
        path = write(write_config, "qwen3", {}, run_name=name, trainable=trainable)
        result = train(path, "--stop-at-step", "1")
        assert result.returncode == 0, result.stdout + result.stderr
        record = read_history(tmp_path / "output" / name)[0]
        losses.append(record[2])
        norms.append(record[4])
    assert len(set(losses)) == 1
    assert norms[0] > norms[2] > norms[1] > norms[3] > 0
    # A resumed run must train the same weights.
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["cpt"]["trainable"] = ROWS
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    refused = train(path)
    assert refused.returncode == 2
    assert "trainable" in refused.stderr
