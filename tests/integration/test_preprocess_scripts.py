"""The shell scripts and the commands of the guide, run in a copy of the repository with a space in its path."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ascend_cpt.data.packed.manifest import check_shards, load_manifest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with blank") / "my clone"
    for name in ("ascend_cpt", "tools", "scripts"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "data_convert_qwen3_pretrain.sh", folder)
    return folder


def run(script: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ASCEND_CPT_PYTHON": sys.executable} | variables
    return subprocess.run(
        ["bash", str(script), *arguments], capture_output=True, text=True, env=environment, cwd="/", check=False
    )


def test_conversion_script_runs_unedited(clone: Path) -> None:
    first = run(clone / "data_convert_qwen3_pretrain.sh")
    assert first.returncode == 0, first.stderr
    manifest = load_manifest(clone / "data" / "sample" / "packed" / "general_train_text_document")
    check_shards(manifest)
    assert (manifest.seq_length, len(manifest.shards)) == (256, 2) and manifest.num_rows > 1000
    again = run(clone / "data_convert_qwen3_pretrain.sh")
    assert again.returncode == 0 and "already complete; reusing it" in again.stderr


def test_flags_override_environment_variables(clone: Path, tmp_path: Path) -> None:
    source = tmp_path / "my corpus" / "a.jsonl"
    source.parent.mkdir()
    source.write_text('{"a b": "x", "text": "one two three"}\n')
    prefix = tmp_path / "my output" / "x y"
    variables = {"INPUT": str(source.parent), "OUTPUT_PREFIX": str(prefix), "SEQ_LENGTH": "8", "N_SUBS": "3"}
    result = run(clone / "data_convert_qwen3_pretrain.sh", "--seq-length", "4", "--no-append-eod", **variables)
    assert result.returncode == 0, result.stderr
    manifest = load_manifest(f"{prefix}_text_document")
    assert (manifest.seq_length, len(manifest.shards), manifest.num_documents) == (4, 3, 1)
    assert manifest.settings["append_eod"] is False


def test_exit_code_of_user_errors(clone: Path, tmp_path: Path) -> None:
    result = run(clone / "data_convert_qwen3_pretrain.sh", INPUT=str(tmp_path / "missing"))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/missing: no such file or folder")


def test_prepare_sample_packs_four_datasets_once(clone: Path) -> None:
    first = run(clone / "scripts" / "prepare_sample.sh")
    assert first.returncode == 0, first.stderr
    packed = clone / "data" / "sample" / "packed"
    names = [f"{domain}_{split}" for domain in ("general", "code") for split in ("train", "valid")]
    manifests = {name: load_manifest(packed / f"{name}_text_document") for name in names}
    assert len({manifest.tokenizer.fingerprint for manifest in manifests.values()}) == 1
    assert all(manifest.num_rows > 200 and manifest.seq_length == 256 for manifest in manifests.values())
    again = run(clone / "scripts" / "prepare_sample.sh")
    assert (
        again.stderr.count("already complete; reusing it") == 4
        and again.stdout.count("already complete; reusing it") == 1
    )
    victim = packed / manifests["code_valid"].shards[0].file
    victim.write_bytes(b"cut short")
    mended = run(clone / "scripts" / "prepare_sample.sh")
    assert mended.returncode == 0 and mended.stderr.count("already complete; reusing it") == 3, mended.stderr
    check_shards(load_manifest(packed / "code_valid_text_document"), checksums=True)


def test_commands_of_the_guide(clone: Path) -> None:
    guide = (REPOSITORY / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(bash|python)\n(.*?)```", guide, re.DOTALL)
    assert [language for language, _ in blocks].count("bash") >= 4
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"ASCEND_CPT_PYTHON": sys.executable, "PATH": path}
    for language, block in blocks:
        if language == "python":
            assert len(block.splitlines()) <= 10
            (clone / "my_handlers.py").write_text(block)
            continue
        result = subprocess.run(
            ["bash", "-euc", block], capture_output=True, text=True, cwd=clone, env=environment, check=False
        )
        assert result.returncode == 0, (block, result.stderr)

    assert load_manifest(clone / "data" / "guide" / "code_text_document").seq_length == 512
    assert len(load_manifest(clone / "data" / "guide" / "direct_text_document").shards) == 4
    questions = load_manifest(clone / "data" / "guide" / "questions_text_document")
    tokenizer = Tokenizer.from_file(str(clone / "data" / "sample" / "tokenizer" / "tokenizer.json"))
    assert questions.num_documents == 1
    assert questions.num_tokens == len(tokenizer.encode("Question: Why?\n\nAnswer: Because.").ids) + 1
