"""tools/convert_weights.py and tools/generate.py: export of a trained model, comparison, text generation."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from ascend_cpt.data.packed.manifest import load_manifest
from ascend_cpt.weights.dtypes import to_float32
from ascend_cpt.weights.forward import compute_logits
from ascend_cpt.weights.hf_folder import HfFolder

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = REPOSITORY / "tests" / "reference"
Completed = subprocess.CompletedProcess[str]


def convert(*arguments: object) -> Completed:
    return run_tool("convert_weights.py", *arguments)


def run_tool(name: str, *arguments: object) -> Completed:
    command = [sys.executable, f"tools/{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def trained(write_config: Callable[..., Path], train: Callable[..., Completed], tmp_path: Path) -> Path:
    """Return a run of a Llama with grouped heads, scaled rope and tied embeddings, saved at steps 10 and 20."""
    config = write_config("llama3", checkpoint={"every": 10 * 8 * 64, "keep_last": 3})
    done = train(config, "--set", "model.model_config.tie_word_embeddings=True")
    assert done.returncode == 0, done.stderr
    return tmp_path / "output" / "run"


def test_exported_model_equals_the_trained_one(trained: Path, packed: Path, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", num_words=500)
    exported = tmp_path / "exported"
    done = convert("to-hf", trained, exported, "--like", tokenizer)
    assert done.returncode == 0, done.stderr
    assert "iteration_00000020" in done.stdout
    files = {path.name for path in exported.iterdir()}
    assert files == {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
    card = (exported / "README.md").read_text(encoding="utf-8")
    for text in ("# run\n", "Random weights.", "after step 20 of 20", "| train | 10.2K |", "| mindspore | 2.9.0 |"):
        assert text in card, text
    verified = convert("verify", exported, "--against", trained)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert verified.stdout.endswith("equal\n")
    # Recompute the loss of the last validation from the exported files only.
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [record for record in records if record["kind"] == "validation"][-1]
    assert last["step"] == 20
    assert compute_loss(exported, packed, num_rows=10) == pytest.approx(last["loss"], abs=1e-4)

    prompt = ["--prompt", "w7 w8", "--num-tokens", 5]
    from_run = run_tool("generate.py", trained, "--tokenizer", tokenizer, *prompt)
    assert from_run.returncode == 0, from_run.stderr
    assert run_tool("generate.py", exported, *prompt).stdout == from_run.stdout
    assert from_run.stdout.startswith("w7 w8 ")

    mean = tmp_path / "mean"
    done = convert("to-hf", trained, mean, "--average", 2)
    assert done.returncode == 0, done.stderr
    earlier = tmp_path / "earlier"
    assert convert("to-hf", trained / "checkpoint" / "iteration_00000010", earlier).returncode == 0
    weights = [load_file(folder / "model.safetensors") for folder in (exported, earlier, mean)]
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(weights[2][name], (tensor + weights[1][name]) / 2, rtol=1e-6, atol=1e-8)
    assert convert("verify", exported, "--against", mean, "--no-logits").returncode == 1

    refused = convert("to-hf", trained, tmp_path / "x", "--average", 5)
    assert_refused(refused, "complete checkpoints: 2, fewer than")
    refused = convert("to-hf", trained, tmp_path / "x", "--like", REFERENCE / "llama31")
    assert_refused(refused, "describes another model")


def compute_loss(folder_path: Path, packed: Path, num_rows: int) -> float:
    """Return the mean loss of `num_rows` rows of a packed dataset, computed by the NumPy forward pass."""
    from ascend_cpt.backend.training.data_loader import PackedRows
    from ascend_cpt.data.packed.network_inputs import IGNORE_LABEL, split_row
    from ascend_cpt.data.packed.row_choice import choose_rows

    folder = HfFolder(folder_path)
    manifest = load_manifest(packed)
    chosen_rows = choose_rows(sum(shard.num_rows for shard in manifest.shards), num_rows)
    rows = PackedRows([manifest], manifest.seq_length).read(np.zeros(num_rows, int), chosen_rows)
    pairs = [split_row(row, manifest.tokenizer.pad_id) for row in rows]
    inputs, labels = (np.stack(part) for part in zip(*pairs, strict=True))
    logits = compute_logits(
        folder.sizes, lambda name: to_float32(folder.read(name), folder.tensors[name].dtype), inputs
    ).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counted = labels != IGNORE_LABEL
    chosen = np.take_along_axis(log_probabilities, np.where(counted, labels, 0)[..., None], axis=-1)[..., 0]
    return float(-chosen[counted].mean())


def write_tokenizer(folder: Path, num_words: int) -> Path:
    """Write a tokenizer with words w0, w1, … as tokens 0, 1, … followed by the end-of-document token."""
    folder.mkdir()
    words = {f"w{index}": index for index in range(num_words)}
    tokenizer = Tokenizer(WordLevel({**words, "<end>": num_words}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}', encoding="utf-8")
    return folder


@pytest.mark.slow
def test_greedy_generation_matches_the_numpy_forward_pass(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", num_words=127)
    done = run_tool(
        "generate.py", REFERENCE / "qwen25_tied", "--tokenizer", tokenizer, "--prompt", "w5 w6 w7", "--num-tokens", 8
    )
    assert done.returncode == 0, done.stderr
    folder = HfFolder(REFERENCE / "qwen25_tied")
    tokens = [5, 6, 7]
    for _ in range(8):
        logits = compute_logits(
            folder.sizes, lambda name: to_float32(folder.read(name), folder.tensors[name].dtype), np.array([tokens])
        )
        tokens.append(int(logits[0, -1].argmax()))
    assert done.stdout.split() == [f"w{token}" for token in tokens]

    drawn = ["--prompt", "w5", "--num-tokens", 8, "--temperature", 1, "--tokenizer", tokenizer]
    first, again, other = (
        run_tool("generate.py", REFERENCE / "llama31", *drawn, "--seed", seed).stdout for seed in (1, 1, 2)
    )
    assert first == again != other
    too_long = ["--prompt", "w5", "--num-tokens", 100, "--tokenizer", tokenizer]
    assert_refused(run_tool("generate.py", REFERENCE / "llama31", *too_long), "the model has only 64 positions")
    larger = write_tokenizer(tmp_path / "larger", num_words=300)
    assert_refused(
        run_tool("generate.py", REFERENCE / "llama31", "--prompt", "w5", "--tokenizer", larger), "has 301 entries"
    )
    assert_refused(run_tool("generate.py", tmp_path / "missing", "--prompt", "w5"), "no such checkpoint")


def assert_refused(done: Completed, named: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert named in lines[0]
    assert "Traceback" not in done.stderr


def test_bad_input_gives_a_one_line_message(tmp_path: Path) -> None:
    target = tmp_path / "new"
    assert_refused(convert("to-hf", tmp_path / "missing", target), "no such checkpoint")
    assert_refused(convert("to-mindformers", tmp_path, target), "no config.json")
    assert_refused(convert("to-mindformers", REFERENCE / "llama3", tmp_path), "already exists")
    shutil.copytree(REFERENCE / "llama3", tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert_refused(convert("to-mindformers", tmp_path / "cut", target), "truncated")
    assert_refused(convert("verify", tmp_path / "cut"), "truncated")
    assert not target.exists()
    assert not list(tmp_path.glob(".*"))


def test_round_trip_on_the_command_line(tmp_path: Path) -> None:
    done = convert("to-mindformers", REFERENCE / "qwen3", tmp_path / "mindformers", "--max-shard-gb", "0.00002")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "mindformers").glob("model-*.safetensors"))) > 1
    assert convert("to-hf", tmp_path / "mindformers", tmp_path / "back").returncode == 0
    done = convert("verify", REFERENCE / "qwen3", "--against", tmp_path / "back", "--no-logits")
    assert done.returncode == 0, done.stdout
