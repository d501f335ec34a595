"""tools/merge_weights.py --sweep on tiny models: results, interruption, several processes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_cpt.model.parameters import list_hf_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.weights.folder_writer import name_hf_file, write_config, write_shards
from ascend_cpt.weights.safetensors_file import TensorInfo
from tests.integration.conftest import REPOSITORY, SEQ_LENGTH, TASKS, VOCAB_SIZE, run_command

TOOL = [sys.executable, "tools/merge_weights.py"]
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": SEQ_LENGTH,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """Return a folder with two models, `base` and `continued`, and their tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    shapes = list_hf_shapes(read_sizes(CONFIG))
    infos = [TensorInfo(name=name, dtype="F32", shape=shape) for name, shape in shapes.items()]
    for seed, name in enumerate(("base", "continued")):
        generator = np.random.default_rng(seed)
        tensors = [
            (info.name, (0.3 * generator.standard_normal(info.shape) + ("norm" in info.name)).astype(np.float32))
            for info in infos
        ]
        (folder / name).mkdir()
        write_shards(folder / name, infos, tensors, name_file=name_hf_file, max_shard_bytes=10**9)
        write_config(folder / name, CONFIG, "float32")
        for file in tokenizer.iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
    return folder


def list_words(models: Path, packed: Path, values: str) -> list[str]:
    return [
        *("--method", "linear", "--model", f"{models}/base=1-w", "--model", f"{models}/continued=w"),
        *("--sweep", f"w={values}", *list_evaluation(packed)),
    ]


def list_evaluation(packed: Path) -> list[str]:
    task = f"facts=multiple_choice:{TASKS / 'plain_choices.jsonl'}"
    return ["--validation", f"general={packed}", "--task", task, "--max-rows", "6"]


def read_points(folder: Path) -> dict[float, list[dict[str, Any]]]:
    stored = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    return {point["value"]: point["records"] for point in stored["points"]}


@pytest.mark.slow
def test_results_are_those_of_the_evaluation_of_a_written_merge(models: Path, packed: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    result = run_command([*TOOL, str(sweep), *list_words(models, packed, "0,0.25,1")])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| w | general loss | facts acc |" in result.stdout and "gain against forgetting" in result.stdout
    assert sorted(path.name for path in sweep.iterdir()) == ["sweep.json", "sweep.md", "sweep.png"]
    merged = tmp_path / "merged"
    weights = ["--model", f"{models}/base=0.75", "--model", f"{models}/continued=0.25"]
    assert run_command([*TOOL, str(merged), "--method", "linear", *weights]).returncode == 0
    points = read_points(sweep)
    assert list(points) == [0.0, 0.25, 1.0]
    for value, folder in {0.0: models / "base", 0.25: merged, 1.0: models / "continued"}.items():
        out = tmp_path / f"{value}.json"
        command = [sys.executable, "tools/evaluate.py", str(folder), *list_evaluation(packed), "--json", str(out)]
        result = run_command(command)
        assert result.returncode == 0, result.stderr
        assert json.loads(out.read_text(encoding="utf-8")) == points[value]
    losses = [records[0]["loss"] for records in points.values()]
    assert len(set(losses)) == 3
    # Two processes give the same results, and a finished sweep evaluates nothing.
    both = tmp_path / "both"
    command = ["tools/merge_weights.py", str(both), *list_words(models, packed, "0.25")]
    result = run_command(["bash", "scripts/msrun_launcher.sh", " ".join(command), "2"])
    assert result.returncode == 0, result.stdout + result.stderr
    (records,) = read_points(both).values()
    assert abs(records[0]["loss"] - points[0.25][0]["loss"]) < 1e-6
    assert sorted(path.name for path in both.iterdir()) == ["sweep.json", "sweep.md", "sweep.png"]


@pytest.mark.slow
def test_a_killed_sweep_continues(models: Path, packed: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    command = [*TOOL, str(sweep), *list_words(models, packed, "0,0.2,0.4,0.6,0.8,1")]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 300
        while not (sweep / "sweep.json").is_file() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    before = read_points(sweep)
    assert 1 <= len(before) < 6
    result = run_command(command)
    assert result.returncode == 0, result.stdout + result.stderr
    started = [line for line in result.stdout.splitlines() if line.startswith("w = ")]
    assert len(started) == 6 - len(before)
    after = read_points(sweep)
    assert list(after) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] and all(after[value] == before[value] for value in before)
    assert sorted(path.name for path in sweep.iterdir()) == ["sweep.json", "sweep.md", "sweep.png"]


def test_errors(models: Path, packed: Path, tmp_path: Path) -> None:
    words = list_words(models, packed, "0,1")
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    descriptor = os.open(sweep, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        result = run_command([*TOOL, str(sweep), *words])
    finally:
        os.close(descriptor)
    assert result.returncode == 2 and "another process is writing a sweep there" in result.stderr
    result = run_command([*TOOL, str(sweep), *words, "--general", "prose"])
    assert result.returncode == 2 and "not among the evaluated sets and tasks: general, facts" in result.stderr
    result = run_command([*TOOL, str(sweep), *words[: words.index("--validation")]])
    assert result.returncode == 2 and "nothing to evaluate" in result.stderr
    assert list(sweep.iterdir()) == []
