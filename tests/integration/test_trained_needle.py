"""The needle gate of a stage: a model that was trained to look facts up passes it, one that was not does not."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ascend_cpt.tasks.facts import make_fact
from tests.integration.conftest import REPOSITORY, run_command
from tests.ports import find_free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
LENGTH, VOCAB_SIZE, MINIMUM = 128, 1024, 0.95
NUM_DOCUMENTS, TRAIN_TOKENS, TOKENS_WITHOUT_FACTS = 40_000, 4_000_000, 500_000
TEXT = (
    "the river runs past old stone walls and quiet fields where people work through long days of summer rain while "
    "birds sing over green hills"
)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": LENGTH,
    # What attention finds is then already close to the logits of the same token.
    "tie_word_embeddings": True,
}


def make_filler(generator: random.Random, num_words: int) -> str:
    sentences = []
    while num_words > 0:
        count = generator.randint(4, 9)
        sentences.append(" ".join(generator.choice(TEXT.split()) for _ in range(count)).capitalize() + ".")
        num_words -= count
    return " ".join(sentences)


def make_document(generator: random.Random) -> str:
    """Return a text with a fact, in half of the documents in a haystack, and the repeated question with its answer."""
    fact = make_fact(generator, 1, lambda _, answer: [int(answer)])
    answered = fact.question + fact.answers[0]
    if generator.random() < 0.5:
        return f"{fact.needle}{answered * 3}\n"
    before, after = (make_filler(generator, generator.randint(0, most)) for most in (45, 25))
    return f"{before}{fact.needle}{after}{answered * 2}\n"


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """Train a tokenizer in which a value of seven digits has four tokens."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r"\d{1,2}| ?\p{L}+|[^\d\p{L}]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=["</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}), encoding="utf-8")


def check(result: subprocess.CompletedProcess[str], code: int = 0) -> str:
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tokenizer and three packed datasets: facts, plain and haystack."""
    folder, generator = tmp_path_factory.mktemp("needles"), random.Random(1)
    texts = {
        "facts": [make_document(generator) for _ in range(NUM_DOCUMENTS)],
        "plain": [make_filler(generator, 60) for _ in range(NUM_DOCUMENTS // 4)],
        "haystack": [make_filler(generator, 60) for _ in range(500)],
    }
    write_tokenizer(folder / "tokenizer", texts["facts"])
    for name, documents in texts.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
        command = [sys.executable, "tools/preprocess_data.py", "--input", str(path), "--seq-length", str(LENGTH)]
        command += ["--tokenizer-name-or-path", str(folder / "tokenizer"), "--output-prefix", str(folder / name)]
        check(run_command(command))
    return folder


def write_stages(folder: Path, data: Path, source: str, train_tokens: int) -> Path:
    """Write two stages, the first of which must find the needles, and return their file."""
    task = {"path": str(data / "haystack_text_document"), "kind": "needle", "lengths": [64, 96, LENGTH], "depths": 3}
    config: dict[str, Any] = {
        "base_config": [str(REPOSITORY / f"configs/base/{name}.yaml") for name in ("cpu_tiny", "llama3_tiny")],
        "output_dir": str(folder / "output"),
        "runner_config": {"batch_size": 16},
        "model": {"model_config": SIZES},
        "cpt": {
            "init_from": "random",
            "seq_length": LENGTH,
            "train_tokens": train_tokens,
            "global_batch_size": 16,
            "document_attention": "within",
            "schedule": {"peak_lr": 3e-3, "final_lr": 3e-4, "warmup_tokens": 50_000},
            "sources": {"train": {"path": str(data / f"{source}_text_document")}},
            "validation": {"tokenizer": str(data / "tokenizer"), "tasks": {"find": {**task, "per_cell": 4}}},
        },
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    first = {"name": "short", "config": "run.yaml", "advance_when": {"needle": MINIMUM}}
    second = {
        "name": "long",
        "config": "run.yaml",
        "set": {"cpt.train_tokens": 4 * 16 * LENGTH, "cpt.schedule.warmup_tokens": 0},
    }
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump({"stages": [first, second]}), encoding="utf-8")
    return path


def run_stages(stages: Path) -> subprocess.CompletedProcess[str]:
    launch = ["1", str(find_free_port()), str(stages.parent / "logs"), "False", "300"]
    return run_command([sys.executable, "tools/train_stages.py", str(stages), *launch], timeout_s=1400)


def test_the_gate_opens_for_a_model_that_finds_needles(data: Path, tmp_path: Path) -> None:
    output = check(run_stages(write_stages(tmp_path, data, "facts", TRAIN_TOKENS)))
    print(*(line for line in output.splitlines() if "find" in line), sep="\n")
    assert "all 2 stages are complete" in output


def test_the_gate_stays_closed_for_a_model_without_facts(data: Path, tmp_path: Path) -> None:
    output = check(run_stages(write_stages(tmp_path, data, "plain", TOKENS_WITHOUT_FACTS)), code=3)
    print(*(line for line in output.splitlines() if "find" in line), sep="\n")
    assert not (tmp_path / "output/stages_long").exists()
