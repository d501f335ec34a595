"""Freezes the command-line flags: adding or removing one requires a change in the lists here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ascend_cpt.cluster.launch.job_secret import INSECURE_OPTION, SECRET_OPTION
from ascend_cpt.cluster.launch.options import OPTIONS

REPO_ROOT = Path(__file__).resolve().parents[2]

# Program, with its subcommand if any → flags. --help is not listed.
FLAGS: dict[str, list[str]] = {
    "run_cpt.py": [
        "--assume",
        "--config",
        "--dry-run",
        "--extend",
        "--load_checkpoint",
        "--no-shared-storage",
        "--no-verify",
        "--output_dir",
        "--pack-only",
        "--reshard",
        "--resume_training",
        "--run_mode",
        "--set",
        "--stop-at-step",
        "--train_dataset",
        "--train_dataset_dir",
        "--use_parallel",
        "--world-size",
    ],
    "tools/convert_weights.py": [],
    "tools/convert_weights.py to-mindformers": [
        "--dtype",
        "--max-shard-gb",
        "--resize-vocab",
    ],
    "tools/convert_weights.py to-hf": [
        "--average",
        "--base",
        "--dtype",
        "--like",
        "--max-shard-gb",
        "--merge",
        "--no-verify",
        "--resize-vocab",
    ],
    "tools/convert_weights.py expand": [
        "--every",
        "--max-shard-gb",
    ],
    "tools/convert_weights.py upcycle": [
        "--dtype",
        "--experts",
        "--max-shard-gb",
        "--noise",
        "--per-token",
        "--seed",
    ],
    "tools/convert_weights.py verify": [
        "--against",
        "--average",
        "--base",
        "--no-logits",
        "--no-verify",
    ],
    "tools/doctor.py": [
        "--disk-gb",
        "--local-workers",
        "--master-addr",
        "--master-port",
        "--node-rank",
        "--nodes",
        "--output-dir",
        "--secret-file",
    ],
    "tools/experiment.py": [
        "--output-dir",
        "--publish",
        "--quick",
        "--render",
        "--seeds",
        "--workers",
    ],
    "tools/extend_vocabulary.py": [
        "--format",
        "--general",
        "--handler-name",
        "--heldout",
        "--heldout-share",
        "--init",
        "--input",
        "--json-key",
        "--max-bytes",
        "--max-chars",
        "--max-shard-gb",
        "--min-count",
        "--new-tokens",
        "--pad-to",
        "--seed",
        "--txt-documents",
    ],
    "tools/gather_checkpoint.py": [
        "--no-verify",
        "--output",
    ],
    "tools/evaluate.py": [
        "--batch-size",
        "--config",
        "--device",
        "--document-attention",
        "--dtype",
        "--json",
        "--max-rows",
        "--no-verify",
        "--poll",
        "--seq-length",
        "--set",
        "--task",
        "--tensor-parallel",
        "--tokenizer",
        "--tokenizer-type",
        "--validation",
        "--watch",
    ],
    "tools/generate.py": [
        "--device",
        "--dtype",
        "--num-tokens",
        "--prompt",
        "--seed",
        "--temperature",
        "--tokenizer",
        "--tokenizer-type",
        "--top-p",
    ],
    "tools/generate_replay.py": [
        "--batch-size",
        "--from-vllm",
        "--json-key",
        "--max-repetition",
        "--max-tokens",
        "--min-chars",
        "--num-texts",
        "--prompt-tokens",
        "--prompts",
        "--seed",
        "--temperature",
        "--tokenizer",
        "--tokenizer-type",
        "--top-p",
    ],
    "tools/inspect_data.py": [
        "--convert",
        "--histogram",
        "--n-subs",
        "--png",
        "--samples",
        "--seq-length",
        "--tokenizer",
        "--tokenizer-type",
        "--verify",
        "--workers",
    ],
    "tools/inspect_data.py adopt": [
        "--eod-token",
        "--ignore-labels",
        "--pad-id",
        "--seq-length",
        "--tokenizer",
        "--tokenizer-type",
    ],
    "tools/make_sample_corpus.py": [
        "--output-dir",
        "--overwrite",
    ],
    "tools/merge_weights.py": [
        "--base",
        "--batch-size",
        "--config",
        "--device",
        "--document-attention",
        "--dtype",
        "--general",
        "--like",
        "--max-rows",
        "--max-shard-gb",
        "--method",
        "--model",
        "--no-normalize",
        "--no-verify",
        "--normalize",
        "--out-dtype",
        "--seq-length",
        "--set",
        "--sweep",
        "--t",
        "--task",
        "--tensor-parallel",
        "--tokenizer",
        "--tokenizer-type",
        "--validation",
    ],
    "tools/plan.py": [
        "--all-micro-batches",
        "--compile",
        "--days",
        "--device",
        "--devices-per-node",
        "--efficiencies",
        "--hbm",
        "--interleave",
        "--json",
        "--layers-per-stage",
        "--log-dir",
        "--measured",
        "--nodes",
        "--objective",
        "--picture",
        "--ranks",
        "--set",
        "--simulate",
        "--suggest",
        "--timeout",
        "--write",
    ],
    "tools/preprocess_data.py": [
        "--append-bos",
        "--append-eod",
        "--dataset-name",
        "--decontaminate",
        "--decontaminate-action",
        "--decontaminate-ngram",
        "--drop-duplicates",
        "--drop-near-duplicates",
        "--engine",
        "--eod-token",
        "--filters",
        "--format",
        "--handler-name",
        "--input",
        "--json-keys",
        "--log-interval",
        "--max-bad-fraction",
        "--max-record-bytes",
        "--minhash-buckets",
        "--minhash-hash",
        "--minhash-hashes",
        "--minhash-ngram",
        "--minhash-precision",
        "--minhash-words",
        "--n-subs",
        "--no-append-bos",
        "--no-append-eod",
        "--output-format",
        "--output-prefix",
        "--overwrite",
        "--packing",
        "--parse-special-tokens",
        "--ray-address",
        "--seq-length",
        "--sub-range",
        "--tail",
        "--tokenizer-engine",
        "--tokenizer-model",
        "--tokenizer-name-or-path",
        "--tokenizer-type",
        "--txt-documents",
        "--workers",
    ],
    "tools/rehearse.py": ["--devices-per-node", "--folder", "--keep", "--nodes", "--processes", "--set", "--timeout"],
    "tools/report.py": [
        "--output",
        "--port",
        "--serve",
    ],
    "tools/search_mixture.py": [
        "--blend",
        "--confirm",
        "--design-seed",
        "--general",
        "--launch",
        "--max-forgetting",
        "--microanneal",
        "--proxies",
        "--proxy",
        "--retry-failed",
        "--seeds",
        "--set",
        "--temperature",
        "--timeout",
        "--upweight",
        "--workers",
    ],
    "tools/summarize_run.py": [],
    "tools/tune.py": [
        "--folder",
        "--launch",
        "--overlays",
        "--retry-failed",
        "--rounds",
        "--set",
        "--steps",
        "--timeout",
        "--warmup-steps",
        "--workers",
        "--write",
    ],
    "tools/train_stages.py": [
        "--advance",
        "--dry-run",
        "--extend",
        "--output_dir",
        "--reshard",
    ],
}
LAUNCHER_OPTIONS = [
    "--hang-timeout",
    "--lost-node-timeout",
    "--max-restarts",
    "--min-nodes",
    "--rejoin-timeout",
    "--restart-delay",
    "--spare-nodes",
    "--stop-grace",
    "--secret-file",
    "--insecure",
]

# Prints the option strings of the program's parser and of its subcommands instead of parsing.
DUMP_FLAGS = """
import argparse, json, runpy, sys

def collect(parser, name, found):
    found[name] = sorted({flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"})
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, subparser in action.choices.items():
                collect(subparser, f"{name} {command}", found)
    return found

def dump_and_exit(self, *args, **kwargs):
    print(json.dumps(collect(self, " ".join(sys.argv), {})))
    sys.exit(0)

argparse.ArgumentParser.parse_known_args = dump_and_exit
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Its argument without a subcommand is a dataset, so argparse does not know the subcommand.
COMMANDS = ["tools/inspect_data.py adopt"]
PROGRAMS = ["run_cpt.py", *sorted(path.relative_to(REPO_ROOT).as_posix() for path in REPO_ROOT.glob("tools/*.py"))]


@pytest.mark.parametrize("program", [*PROGRAMS, *COMMANDS])
def test_flags_of_a_program(program: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", DUMP_FLAGS, *program.split()], cwd=REPO_ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    expected = {
        name: flags
        for name, flags in FLAGS.items()
        if name == program or (name.startswith(f"{program} ") and name not in COMMANDS)
    }
    assert expected, f"{program} has no entry in FLAGS"
    assert json.loads(result.stdout) == expected


def test_every_listed_program_exists() -> None:
    assert {name.split()[0] for name in FLAGS} == set(PROGRAMS)


def test_launcher_options() -> None:
    assert [*sorted(option.name for option in OPTIONS), SECRET_OPTION, INSECURE_OPTION] == LAUNCHER_OPTIONS
