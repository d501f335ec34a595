"""A run that freezes weights with MindFormers' keys: they keep their values, and the run is exported like any other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.integration.conftest import SEQ_LENGTH, run_command

TIMEOUT_S = 400


@pytest.mark.slow
def test_frozen_weights_are_exported(write_config: Callable[..., Path], tmp_path: Path) -> None:
    path = write_config(
        train_tokens=3 * 8 * SEQ_LENGTH,
        schedule={"peak_lr": 1e-2},
        validation=None,
        checkpoint={"every": "1 steps", "keep_last": 0},
    )
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["model"]["model_config"]["pet_config"] = {
        "freeze_include": ["*word_embeddings*", "*layers.0.*"],
        "freeze_exclude": ["*layernorm*"],
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "run_cpt.py", "--config", str(path)]
    stopped = run_command([*command, "--stop-at-step", "2"], timeout_s=TIMEOUT_S)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "frozen   " in stopped.stdout
    resumed = run_command(command, timeout_s=TIMEOUT_S)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    weights = []
    for checkpoint in sorted((tmp_path / "output/run/checkpoint").iterdir())[::2]:
        exported = tmp_path / f"hf_{checkpoint.name}"
        convert = [sys.executable, "tools/convert_weights.py", "to-hf", str(checkpoint), str(exported)]
        result = run_command(convert, timeout_s=TIMEOUT_S)
        assert result.returncode == 0, result.stdout + result.stderr
        weights.append(load_file(exported / "model.safetensors"))
    first, last = weights
    assert set(first) == set(last)
    kept = {name for name in first if np.array_equal(first[name], last[name])}
    # MindFormers names the norms of queries and keys q_layernorm and k_layernorm.
    frozen = {name for name in first if ("layers.0." in name and "norm" not in name) or "embed_tokens" in name}
    assert kept == frozen
