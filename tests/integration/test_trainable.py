"""`cpt.trainable`: the first rows of the embedding and the output layer, and all other weights, keep their values."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.integration.conftest import SEQ_LENGTH, read_history, run_command

TIMEOUT_S = 900
FIRST_ROW = 300
ROWS = [f"*word_embeddings.weight[{FIRST_ROW}:]", f"output_layer.weight[{FIRST_ROW}:]"]


def write(write_config: Callable[..., Path], family: str, model: dict[str, Any], **changes: Any) -> Path:
    path = write_config(
        family,
        train_tokens=4 * 8 * SEQ_LENGTH,
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


def export(run: Path, target: Path) -> list[dict[str, np.ndarray]]:
    """Return the weights of a run's first and last checkpoint."""
    checkpoints = sorted((run / "checkpoint").iterdir())
    weights = []
    for checkpoint in (checkpoints[0], checkpoints[-1]):
        folder = target / checkpoint.name
        convert = [sys.executable, "tools/convert_weights.py", "to-hf", str(checkpoint), str(folder)]
        result = run_command(convert, timeout_s=TIMEOUT_S)
        assert result.returncode == 0, result.stdout + result.stderr
        weights.append(load_file(folder / "model.safetensors"))
    return weights


@pytest.mark.slow
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
    stopped = train(path, "--stop-at-step", "3")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert f"rows 0 to {FIRST_ROW - 1} of embedding.word_embeddings.weight" in stopped.stdout
    resumed = train(path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    first, last = export(tmp_path / "output/run", tmp_path / "hf")
    trained = {"model.embed_tokens.weight"} if is_tied else {"model.embed_tokens.weight", "lm_head.weight"}
    assert {name for name in first if not np.array_equal(first[name], last[name])} == trained
    for name in trained:
        assert np.array_equal(first[name][:FIRST_ROW], last[name][:FIRST_ROW])
        # 9 of the rows are not in the data; those of the embedding get no gradient, so Adam does not change them.
        changed = (first[name][FIRST_ROW:] != last[name][FIRST_ROW:]).any(axis=1)
        assert changed.sum() > 150

    # The loss of the first step is that of the run that trains everything; its gradient is larger.
    whole = write(write_config, family, model, run_name="whole", **changes)
    result = train(whole, "--stop-at-step", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    rows, everything = (read_history(tmp_path / "output" / name)[0] for name in ("run", "whole"))
    assert rows[2] == everything[2]
    assert rows[4] < everything[4]


@pytest.mark.slow
def test_a_resumed_run_must_train_the_same_weights(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(write_config, "qwen3", {}, trainable=["decoder.layers.1.*"])
    stopped = train(path, "--stop-at-step", "1")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["cpt"]["trainable"] = ["decoder.layers.0.*"]
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    refused = train(path)
    assert refused.returncode == 2
    assert "trainable" in refused.stderr
    assert json.loads((tmp_path / "output/run/run.json").read_text(encoding="utf-8"))
