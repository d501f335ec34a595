"""A training run with a needle task: scores for each cell before and after, and their pictures."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import REPOSITORY, run_command

LENGTH = 256


@pytest.mark.slow
def test_needle_task_of_a_training_run(
    sample: Path, tmp_path: Path, train: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    prefix = tmp_path / "packed" / "general"
    command = [sys.executable, "tools/preprocess_data.py", "--input", sample / "general/train.parquet"]
    command += ["--tokenizer-name-or-path", sample / "tokenizer", "--output-prefix", prefix, "--seq-length", LENGTH]
    packed = run_command([str(word) for word in command])
    assert packed.returncode == 0, packed.stderr
    task = {"path": f"{prefix}_text_document", "kind": "needle", "lengths": [192, LENGTH], "depths": 3, "choices": 2}
    config: dict[str, Any] = {
        "base_config": [str(REPOSITORY / f"configs/base/{name}.yaml") for name in ("cpu_tiny", "qwen3_tiny")],
        "output_dir": str(tmp_path / "output"),
        "cpt": {
            "run_name": "run",
            "init_from": "random",
            "seq_length": LENGTH,
            "train_tokens": 3 * 4 * LENGTH,
            "global_batch_size": 4,
            "document_attention": "within",
            "schedule": {"peak_lr": 1e-3},
            "sources": {"general": {"path": f"{prefix}_text_document"}},
            "validation": {"tokenizer": str(sample / "tokenizer"), "tasks": {"needle": task}},
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    result = train(path)
    assert result.returncode == 0, result.stderr
    assert "needle: 6 items, 12 rows of 256 tokens per evaluation" in result.stdout
    run_dir = tmp_path / "output/run"
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    records = [record for record in lines if record["kind"] == "task"]
    assert [record["step"] for record in records] == [0, 3]
    for record in records:
        cells = [record["values"][f"acc/{length}/{depth}"] for length in (192, 256) for depth in ("0", "0.5", "1")]
        assert set(cells) <= {0.0, 1.0} and math.isclose(sum(cells) / 6, record["score"])
    assert (run_dir / "needle_needle.png").read_bytes()[:4] == b"\x89PNG"
    assert "needle: acc at step 3, by depth and tokens" in (run_dir / "report.html").read_text(encoding="utf-8")
