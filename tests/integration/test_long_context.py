"""Long context: training with attention within documents and shorter validation rows."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ascend_cpt.data.packed.checksum import checksum_file
from ascend_cpt.data.packed.manifest import Manifest, Shard, load_manifest, manifest_path, write_manifest
from ascend_cpt.data.packed.megatron_indexed import IndexedWriter
from ascend_cpt.data.tokenizing.base import Encoded
from tests.integration.conftest import REPOSITORY, run_command

Train = Callable[..., subprocess.CompletedProcess[str]]
WriteConfig = Callable[..., Path]

NUM_TOKENS = 20 * 129


@pytest.fixture(scope="session")
def long_rows(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the prefix of an mmap dataset, which is cut into rows of any length."""
    prefix = tmp_path_factory.mktemp("long") / "long_text_document"
    writer = IndexedWriter(prefix, np.dtype(np.uint16))
    writer.write(Encoded(np.arange(NUM_TOKENS, dtype=np.int32) * 3 % 500, np.array([0, NUM_TOKENS])))
    writer.close()
    shard = Shard(
        file=f"{prefix.name}.bin",
        size_bytes=prefix.with_suffix(".bin").stat().st_size,
        sha256=checksum_file(prefix.with_suffix(".bin")),
        index_file=f"{prefix.name}.idx",
        index_size_bytes=prefix.with_suffix(".idx").stat().st_size,
        index_sha256=checksum_file(prefix.with_suffix(".idx")),
        num_rows=0,
        num_tokens=NUM_TOKENS,
        num_documents=1,
        text_bytes=NUM_TOKENS,
    )
    tokenizer = load_manifest(packed).tokenizer
    manifest = Manifest(key="text", output_format="mmap", seq_length=None, tokenizer=tokenizer, shards=(shard,))
    write_manifest(manifest, manifest_path(prefix))
    return prefix


def read_records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.mark.slow
def test_attention_within_documents_in_training_and_shorter_validation_rows(
    train: Train, write_config: WriteConfig, long_rows: Path, tmp_path: Path
) -> None:
    """With equal initial weights the validation loss does not depend on the run's row length."""
    within = {"document_attention": "within"}
    longer = {"seq_length": 128, "sources": {"train": {"path": str(long_rows)}}, "train_tokens": 20 * 8 * 128}
    base, losses = {}, {}
    for name, changes in {"across": {}, "within": within, "longer": {**within, **longer}}.items():
        result = train(write_config(run_name=name, **changes), "--stop-at-step", "3")
        assert result.returncode == 0, result.stderr
        run_dir = tmp_path / "output" / name
        before = read_records(run_dir, "validation")[0]
        assert before["step"] == 0 and before["num_labels"] == 10 * 64, "padding is masked in the loss"
        base[name] = before["loss"]
        losses[name] = [record["loss"] for record in read_records(run_dir, "step")]
    assert base["longer"] == pytest.approx(base["within"], abs=1e-5)
    assert abs(base["within"] - base["across"]) > 1e-4
    assert losses["within"] != losses["across"], "the training rows have boundaries too"


def test_held_stage_and_next_stage_from_its_weights(
    write_config: WriteConfig, long_rows: Path, free_ports: list[int], tmp_path: Path
) -> None:
    short = write_config(train_tokens=3 * 8 * 64)
    longer = {
        "cpt.seq_length": 128,
        "cpt.train_tokens": 2 * 8 * 128,
        "cpt.sources.train.path": str(long_rows),
        "cpt.schedule.warmup_tokens": 0,
        "model.model_config.max_position_embeddings": 128,
    }
    first = {
        "name": "64",
        "config": short.name,
        "set": {"cpt.schedule.warmup_tokens": 0},
        "advance_when": {"set": "held", "max_increase": -9.0},
    }
    stages = tmp_path / "two.yaml"
    stages.write_text(
        yaml.safe_dump({"stages": [first, {"name": "128", "config": short.name, "set": longer}]}), "utf-8"
    )

    def run(*arguments: str, port: int) -> subprocess.CompletedProcess[str]:
        launch = ["2", str(port), str(tmp_path / "logs"), "False", "300"]
        return run_command([sys.executable, "tools/train_stages.py", str(stages), *launch, *arguments])

    held = run(port=free_ports[0])
    assert held.returncode == 3, held.stdout + held.stderr
    assert "stage 64: held: loss of held: " in held.stdout and not (tmp_path / "output/two_128").exists()
    done = run("--advance", "64", port=free_ports[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stage 64 (1 of 2): complete" in done.stdout and "all 2 stages are complete" in done.stdout
    ended_with = read_records(tmp_path / "output/two_64", "validation")[-1]["loss"]
    started_with, *_ = read_records(tmp_path / "output/two_128", "validation")
    assert started_with["step"] == 0 and started_with["loss"] == pytest.approx(ended_with, abs=1e-5)
    assert [record["step"] for record in read_records(tmp_path / "output/two_128", "step")] == [1, 2]


def test_commands_of_the_guide_on_the_sample(tmp_path: Path) -> None:
    """Runs the commands unchanged in a temporary folder; training is covered by the test above."""
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    guide = (REPOSITORY / "docs/long_context.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in re.findall(r"^    (python tools/\S+ .*)$", guide, re.MULTILINE)]
    packing = [words for words in commands if words[1] == "tools/preprocess_data.py"]
    dry_run, training = (words for words in commands if "configs/stages/qwen3_tiny_256_512.yaml" in words)
    assert len(packing) == 2 and training == dry_run[:-1] and dry_run[-1] == "--dry-run"
    sample = [
        [*packing[0][:3], f"data/sample/{source}.parquet", *packing[0][4:7], f"data/sample/packed/{prefix}"]
        for source, prefix in (
            ("code/train", "code_train"),
            ("code/valid", "code_valid"),
            ("general/valid", "general_valid"),
        )
    ]
    made = ["python", "tools/make_sample_corpus.py", "--output-dir", "data/sample"]
    for words in (made, *([*words, "--seq-length", "256"] for words in sample), *packing, dry_run):
        result = run_command([sys.executable, *words[1:]], cwd=tmp_path)
        assert result.returncode == 0, f"{shlex.join(words)}\n{result.stderr}"
    assert "--- stage 256\n" in result.stdout and "--- stage 512\n" in result.stdout
    assert "rows × 512 tokens" in result.stdout
