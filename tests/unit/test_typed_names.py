"""Names and flags of other programs are accepted, or the error names what to use instead."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.config.foreign_flags import PREPROCESS_FLAGS, TRAIN_FLAGS
from ascend_cpt.data.packed.manifest import load_manifest
from ascend_cpt.data.tokenizing.names import (
    HUGGING_FACE,
    SENTENCE_PIECE,
    TIKTOKEN,
    find_named_tokenizer,
    parse_tokenizer_type,
)
from tests.command_line import TrainCommand, train_command  # noqa: F401

REPO_ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {
    "init_from": "random",
    "seq_length": 256,
    "global_batch_size": 8,
    "train_tokens": 1000 * 8 * 256,
    "schedule": {"peak_lr": 1e-4},
    "sources": {"web": {"path": "/nowhere/web_text_document"}},
}
# PAI's parameters of continued pretraining, as its page names them.
PAI: dict[str, Any] = {
    "job_name": "qwen2-72b-cpt",
    "init_from": "random",
    "batch_size": 4,
    "global_batch_size": 4,
    "learning_rate": 5e-5,
    "min_learning_rate": 5e-6,
    "sequence_length": 1024,
    "pad_length": 128,
    "save_interval": 1000,
    "train_tokens": 204_800,
    "warmup_tokens": 20_480,
    "sources": {"web": {"path": "/nowhere/web_text_document"}},
}


def test_pai_names(train_command: TrainCommand) -> None:  # noqa: F811
    code, out, err = train_command.dry_run(train_command.write(PAI))
    assert code == 0, err
    assert "/qwen2-72b-cpt\n" in out
    assert "batch    4 rows × 1024 tokens" in out and "budget   50 steps" in out
    assert "warmup (linear) 0 → 5e-05 over 5 steps" in out and "cosine 5e-05 → 5e-06 over 45 steps" in out
    assert "1000 steps is longer than the run of 50 steps" in out and "1 saved" in out


def test_a_later_file_overrides_under_the_other_name(train_command: TrainCommand) -> None:  # noqa: F811
    path = train_command.write({**TINY, "run_name": "first"})
    code, out, err = train_command.dry_run(path, "--set", "cpt.job_name=second")
    assert code == 0, err
    assert "/second\n" in out


def test_both_names_in_one_file_are_refused(train_command: TrainCommand) -> None:  # noqa: F811
    code, _, err = train_command.dry_run(train_command.write({**TINY, "run_name": "a", "job_name": "b"}))
    assert code == 2 and "cpt.job_name and cpt.run_name" in err and "are the same setting; keep one" in err
    schedule = {"peak_lr": 1e-4, "warmup_share": 0.1, "warmup_ratio": 0.1}
    code, _, err = train_command.dry_run(train_command.write({**TINY, "schedule": schedule}))
    assert code == 2 and "cpt.schedule.warmup_ratio and cpt.schedule.warmup_share" in err


def test_warmup_ratio(train_command: TrainCommand) -> None:  # noqa: F811
    schedule = {"peak_lr": 1e-4, "warmup_ratio": 0.03}
    code, out, err = train_command.dry_run(train_command.write({**TINY, "schedule": schedule}))
    assert code == 0, err
    assert "warmup (linear) 0 → 0.0001 over 30 steps" in out


@pytest.mark.parametrize("accumulation", [None, 4])
def test_global_batch_follows_from_the_micro_batch(
    train_command: TrainCommand,  # noqa: F811
    accumulation: int | None,
) -> None:
    recipe = "configs/recipes/mindformers_llama2_7b_wikitext.yaml"
    arguments = ["--set", "cpt.global_batch_size=null"]
    if accumulation:
        arguments += ["--set", f"runner_config.gradient_accumulation_steps={accumulation}"]
    code, out, err = train_command.dry_run(recipe, *arguments)
    assert code == 0, err
    rows = 8 * (accumulation or 8)
    assert f"batch    {rows} rows × 4096 tokens" in out and "(1 row × 8 ranks × " in out


def test_global_batch_without_a_micro_batch(train_command: TrainCommand) -> None:  # noqa: F811
    code, _, err = train_command.dry_run(train_command.write({**TINY, "global_batch_size": None}))
    assert code == 2
    assert "cpt.global_batch_size: missing; set the rows per step over all devices, or set runner_config" in err


def test_predict_names_generate(train_command: TrainCommand) -> None:  # noqa: F811
    code, _, err = train_command.dry_run(train_command.write(TINY), "--run_mode", "predict")
    assert code == 2 and "generate text from it with tools/generate.py" in err


@pytest.mark.parametrize("flag", TRAIN_FLAGS)
def test_training_flags_of_other_programs(train_command: TrainCommand, flag: str) -> None:  # noqa: F811
    code, _, err = train_command.run("--config", "x.yaml", flag, "1")
    assert (code, err) == (2, f"error: flags of another program: {flag}: {TRAIN_FLAGS[flag]}\n")


def test_unknown_flags_beside_known_ones_are_named(train_command: TrainCommand) -> None:  # noqa: F811
    code, _, err = train_command.run("--config", "x.yaml", "--lr=1e-5", "--no-such-flag")
    assert code == 2 and err.endswith("; unknown: --no-such-flag\n")


def preprocess(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/preprocess_data.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPO_ROOT, text=True, capture_output=True, check=False)


@pytest.fixture
def corpus(tmp_path: Path) -> list[object]:
    """Return the arguments that pack a small file to .bin and .idx with the tokenizer in `tmp_path`/tokenizer."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copy(REPO_ROOT / "tests/reference/tasks/tokenizer.json", folder)
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "one two three"}\n', encoding="utf-8")
    return ["--input", source, "--output-prefix", tmp_path / "out/a", "--output-format", "mmap", "--workers", 1]


def test_a_tokenizer_by_name_and_mindspeed_flags(corpus: list[object], tmp_path: Path) -> None:
    flags = ["--log-interval", 1000, "--handler-name", "GeneralPretrainHandler", "--eod-token", "<unk>"]
    result = preprocess(
        *corpus, "--tokenizer-type", "Qwen3Tokenizer", "--tokenizer-name-or-path", tmp_path / "tokenizer", *flags
    )
    assert result.returncode == 0, result.stderr
    manifest = load_manifest(tmp_path / "out/a_text_document")
    assert (manifest.num_documents, manifest.tokenizer.type) == (1, "PretrainedFromHF")


def test_names_of_tokenizers_and_their_files(tmp_path: Path) -> None:
    def find(name: str, path: Path) -> tuple[str, str]:
        return find_named_tokenizer(parse_tokenizer_type(name), str(path))

    (tmp_path / "tokenizer.json").touch()
    for name in ("Qwen3Tokenizer", "qwen2tokenizer", "Llama2Tokenizer", "Llama3Tokenizer"):
        assert find(name, tmp_path) == (HUGGING_FACE, str(tmp_path))
    assert find("Qwen3Tokenizer", tmp_path / "tokenizer.json") == (HUGGING_FACE, str(tmp_path))
    # With a model file in the folder, that is what the name means.
    model = tmp_path / "tokenizer.model"
    model.touch()
    for path in (tmp_path, model):
        assert find("Llama2Tokenizer", path) == (SENTENCE_PIECE, str(model))
        assert find("Llama3Tokenizer", path) == (TIKTOKEN, str(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizer-type", "BertTokenizer"], "error: --tokenizer-type: 'BertTokenizer' is unknown; choose from Pre"),
        (["--output-format", "mindrecord"], "error: --seq-length: missing; give the trained tokens per row"),
        (["--pad-vocab-size-to", "32000"], "error: flags of another program: --pad-vocab-size-to: model.model_"),
    ],
)
def test_preprocessing_errors_name_the_way_out(
    corpus: list[object], tmp_path: Path, arguments: Any, message: str
) -> None:
    result = preprocess(*corpus, "--tokenizer-name-or-path", tmp_path / "tokenizer", *arguments)
    assert result.returncode == 2 and result.stderr.startswith(message), result.stderr


def test_every_explained_flag_is_unknown_to_the_parser() -> None:
    text = (REPO_ROOT / "tools/preprocess_data.py").read_text(encoding="utf-8")
    assert not [flag for flag in PREPROCESS_FLAGS if f'"{flag}"' in text]


@pytest.mark.parametrize("script", ["run_mindformer.py", "run_llama3.py"])
def test_a_launch_of_mindformers_script_names_run_cpt(script: str) -> None:
    command = [f"{script} --config x.yaml --train_dataset_dir /path/wiki4096.mindrecord --use_parallel True", "8"]
    result = subprocess.run(
        ["bash", str(REPO_ROOT / "scripts/msrun_launcher.sh"), *command],
        env=os.environ | {"ASCEND_CPT_PYTHON": sys.executable},
        text=True,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 2
    assert f"script not found: {script}" in result.stderr and "use run_cpt.py instead" in result.stderr


def test_the_conversion_script_sources_cann(tmp_path: Path) -> None:
    env_script = tmp_path / "set_env.sh"
    env_script.write_text('export SEEN="${UNSET_VARIABLE}x"; echo "sourced $SEEN"\n', encoding="utf-8")
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\n[[ $1 == *installed.py ]] || echo "python $SEEN"\n', encoding="utf-8")
    python.chmod(0o755)
    variables = {"CANN_ENV": str(env_script), "ASCEND_CPT_PYTHON": str(python), "INPUT": "a", "TOKENIZER": "b"}
    result = subprocess.run(
        ["bash", str(REPO_ROOT / "data_convert_qwen3_pretrain.sh")],
        env=os.environ | variables,
        text=True,
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stdout.splitlines()) == (0, ["sourced x", "python x"]), result.stderr
