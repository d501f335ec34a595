"""`cpt.loss_chunks` on the CPU: training and validation have the losses of the run without it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ascend_cpt.monitor.history import read_run_info
from tests.integration.conftest import TASKS, read_history

Completed = subprocess.CompletedProcess[str]
NUM_STEPS = 6


def compare(one: Path, parts: Path) -> None:
    """Check that two runs have the same records, with losses equal to 1e-5 and gradient norms to 5e-5."""
    records, others = read_history(one), read_history(parts)
    assert [record[:2] for record in records] == [record[:2] for record in others]
    assert len(records) >= NUM_STEPS + 2
    # The gradient's sums have another order. After six steps of AdamW, the norms differ by up to 2e-5.
    for index, tolerance in ((2, 1e-5), (4, 5e-5)):
        values, changed = (
            np.array([record[index] if record[index] is not None else 0.0 for record in run], float)
            for run in (records, others)
        )
        np.testing.assert_allclose(values, changed, rtol=tolerance)
    assert [read_run_info(run)["loss_chunks"] for run in (one, parts)] == [1, 4]


def write_pair(write_config: Callable[..., Path], family: str, changes: dict[str, Any], model: dict[str, Any]) -> Any:
    """Write the same run without and with parts; return both configurations."""
    paths = []
    for chunks in (1, 4):
        path = write_config(family, run_name=f"chunks_{chunks}", loss_chunks=chunks, **changes)
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
        sections["model"]["model_config"].update(model)
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
        paths.append(path)
    return paths


@pytest.mark.parametrize(
    ("family", "attention", "model"),
    [
        ("qwen3", "within", {}),
        pytest.param("llama3", "across", {"tie_word_embeddings": True}, marks=pytest.mark.slow),
        pytest.param("qwen2", "across", {}, marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_the_whole(
    family: str,
    attention: str,
    model: dict[str, Any],
    write_config: Callable[..., Path],
    train: Callable[..., Completed],
    packed: Path,
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    changes = {
        "train_tokens": NUM_STEPS * 8 * 64,
        "schedule": {"peak_lr": 1e-2},
        "document_attention": attention,
        "validation": {
            "every": "3 steps",
            "max_rows": 10,
            "sets": {"held": {"path": str(packed)}},
            "tokenizer": str(tokenizer),
            "tasks": {
                "choices": {"path": str(TASKS / "plain_choices.jsonl"), "kind": "multiple_choice", "max_items": 4}
            },
        },
    }
    whole, parts = write_pair(write_config, family, changes, model)
    for config in (whole, parts):
        result = train(config)
        assert result.returncode == 0, result.stdout + result.stderr
    compare(tmp_path / "output/chunks_1", tmp_path / "output/chunks_4")


@pytest.mark.slow
def test_two_workers(
    write_config: Callable[..., Path], launch: Callable[..., Completed], tmp_path: Path, free_ports: list[int]
) -> None:
    changes = {"train_tokens": NUM_STEPS * 8 * 64, "schedule": {"peak_lr": 1e-2}}
    for config, port in zip(write_pair(write_config, "qwen3", changes, {}), free_ports, strict=False):
        result = launch(config, port=port, log_dir=tmp_path / f"log_{port}", timeout_s=500)
        assert result.returncode == 0, result.stdout + result.stderr
    compare(tmp_path / "output/chunks_1", tmp_path / "output/chunks_4")
