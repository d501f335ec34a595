"""tools/generate_replay.py: generation, interruption, filters, vLLM's formats and mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.errors import ConfigError, DataError
from ascend_cpt.model.parameters import list_hf_shapes
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.run.replay.filters import ReplayFilter, measure_repetition
from ascend_cpt.run.replay.generate import ReplayOrder, generate_parts
from ascend_cpt.run.replay.sampling import Sampling
from ascend_cpt.run.replay.vllm import read_vllm
from ascend_cpt.weights.folder_writer import name_hf_file, write_config, write_shards
from ascend_cpt.weights.safetensors_file import TensorInfo

REPOSITORY = Path(__file__).resolve().parents[4]
TOOL = REPOSITORY / "tools/generate_replay.py"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Hugging Face folder with random weights and the small tokenizer of the reference tasks."""
    folder = tmp_path_factory.mktemp("model")
    shapes = list_hf_shapes(read_sizes(CONFIG))
    infos = [TensorInfo(name=name, dtype="F32", shape=shape) for name, shape in shapes.items()]
    generator = np.random.default_rng(0)
    tensors = [
        (info.name, (0.3 * generator.standard_normal(info.shape) + ("norm" in info.name)).astype(np.float32))
        for info in infos
    ]
    write_shards(folder, infos, tensors, name_file=name_hf_file, max_shard_bytes=10**9)
    write_config(folder, CONFIG, "float32")
    shutil.copy(REPOSITORY / "tests/reference/tasks/tokenizer.json", folder)
    named = {"eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)


def make_order(model: Path, **changes: object) -> ReplayOrder:
    values = {
        "model": model,
        "tokenizer": model,
        "tokenizer_type": "PretrainedFromHF",
        "num_texts": 10,
        "batch_size": 4,
        "sampling": Sampling(max_tokens=20, seed=1),
    }
    return ReplayOrder(**{**values, **changes})  # type: ignore[arg-type]


def test_the_tool_writes_texts_and_counts(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "replay.jsonl"
    result = run(model, output, "--num-texts", 10, "--batch-size", 4, "--max-tokens", 20, "--seed", 1, "--min-chars", 5)
    assert result.returncode == 0, result.stderr
    assert "batch 3 of 3: 2 texts" in result.stdout
    texts = [json.loads(line)["text"] for line in output.read_text(encoding="utf-8").splitlines()]
    counts = json.loads((tmp_path / "replay.jsonl.counts.json").read_text(encoding="utf-8"))
    assert counts["kept"] == len(texts) == 10 - counts["short"] - counts["repetitive"] - counts["duplicate"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replay.jsonl", "replay.jsonl.counts.json"]
    # The same bytes in other batches.
    again = tmp_path / "again.jsonl"
    assert run(model, again, "--num-texts", 10, "--max-tokens", 20, "--seed", 1, "--min-chars", 5).returncode == 0
    assert again.read_bytes() == output.read_bytes()
    result = run(model, output)
    assert result.returncode == 2 and "already exists" in result.stderr


def test_an_interrupted_generation_continues(model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    whole = list(generate_parts(make_order(model), tmp_path / "whole", lines.append))
    assert len(whole) == 10 and len(lines) == 3
    folder = tmp_path / "parts"
    list(generate_parts(make_order(model), folder, lambda line: None))
    (folder / "00000004.json").unlink()
    lines.clear()
    assert list(generate_parts(make_order(model), folder, lines.append)) == whole
    assert lines[0].startswith("continuing: 2 of 3 batches") and len(lines) == 2
    with pytest.raises(ConfigError, match="generated with other settings"):
        list(generate_parts(make_order(model, batch_size=5), folder, lines.append))


def test_prompts_begin_the_texts(model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = ["The court held that the rule applies.", "def main(): return"]
    prompts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    order = make_order(model, prompts=(str(prompts),), prompt_tokens=4, num_texts=4)
    texts = list(generate_parts(order, tmp_path / "parts", lambda line: None))
    assert all(text.strip().startswith(("The", "def")[index % 2]) for index, text in enumerate(texts))
    assert texts[0] != texts[2]  # other random numbers
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": " "}\n', encoding="utf-8")
    with pytest.raises(DataError, match="contains no text"):
        list(generate_parts(make_order(model, prompts=(str(empty),)), tmp_path / "none", lambda line: None))


def test_a_text_longer_than_the_model_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--max-tokens 65: the model can use at most 64"):
        list(generate_parts(make_order(model, sampling=Sampling(max_tokens=65)), tmp_path / "p", lambda line: None))


def test_the_filter_counts_what_it_drops() -> None:
    kept_by = ReplayFilter(min_chars=20, max_repetition=0.5)
    text = "A text with enough different words to be kept by the filter."
    verdicts = [kept_by.keeps(one) for one in (text, f" {text}\n", "short", "the same four words " * 10, text + "!")]
    assert verdicts == [True, False, False, False, True]
    assert kept_by.counts == {"kept": 2, "short": 1, "repetitive": 1, "duplicate": 1}
    assert measure_repetition("a b c d e") == 0 and measure_repetition("天地玄黄" * 5) == pytest.approx(13 / 17)
    assert measure_repetition("a b") == 0


def test_outputs_of_vllm(tmp_path: Path) -> None:
    path = tmp_path / "outputs.jsonl"
    batch = {
        "custom_id": "1",
        "response": {"status_code": 200, "body": {"choices": [{"text": "one"}, {"text": "two"}]}},
    }
    chat = {
        "response": {"status_code": 200, "body": {"choices": [{"message": {"role": "assistant", "content": "three"}}]}}
    }
    failed = {"response": {"status_code": 500, "body": None}, "error": None}
    request = {"prompt": "Once", "outputs": [{"text": " upon"}, {"text": " more"}]}
    lines = [batch, chat, failed, request, {"text": "plain"}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    assert list(read_vllm(path)) == ["one", "two", "three", None, "Once upon", "Once more", "plain"]
    output = tmp_path / "replay.jsonl"
    result = run(output, "--from-vllm", path, "--min-chars", 1)
    assert result.returncode == 0, result.stderr
    assert "7 texts" not in result.stdout and "6 texts" in result.stdout and "1 failed" in result.stdout
    assert len(output.read_text(encoding="utf-8").splitlines()) == 6


@pytest.mark.parametrize("line", ['{"response": {"body": {}}}', "[1]", '{"text": 3}', '{"outputs": [{}]}', "{"])
def test_a_line_in_no_format_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "outputs.jsonl"
    path.write_text(f'{{"text": "a"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"outputs\.jsonl:2: .*; correct or remove this line"):
        list(read_vllm(path))
    output = tmp_path / "replay.jsonl"
    result = run(output, "--from-vllm", path) if line == "{" else None
    assert result is None or (result.returncode == 2 and not output.exists())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["replay.jsonl"], "give either MODEL"),
        (["base", "replay.txt"], "ends with .jsonl"),
        (["base", "replay.jsonl", "--top-p", "0"], "--top-p 0: must be above 0"),
        (["base", "replay.jsonl", "--num-texts", "0"], "--num-texts 0: must be at least 1"),
        (["base", "r.jsonl", "--prompts", "p", "--prompt-tokens", "300"], "leaves nothing to generate"),
        (["missing_model", "r.jsonl"], "missing_model"),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path) -> None:
    words = [str(tmp_path / word) if word.startswith(("r", "missing")) else word for word in words]
    result = run(*words)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("r*"))
