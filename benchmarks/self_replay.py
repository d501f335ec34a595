"""Test whether replay text written by the base model protects as the real data does.

    python benchmarks/self_replay.py [--seeds 1 2 3] [--output-dir output/self_replay]

For each seed, a tiny Qwen3 is trained on English prose and then on source code: without replay, with 25 % of the prose
replayed, and with 25 % of text that the base itself wrote (tools/generate_replay.py). The three continuations are
phases of one run (cpt.restart_phases). Complete parts are reused. Writes results.json and results.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.forgetting import SETS, render_table

PACKED = "data/sample/packed"
ARMS = {
    "no replay": {"code": 1},
    "25 % real replay": {"code": 0.75, "general": 0.25},
    "25 % text of the base": {"code": 0.75, "replay": 0.25},
}


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output-dir", type=Path, default=Path("output/self_replay"))
    parser.add_argument("--base-tokens", type=int, default=120_000)
    parser.add_argument("--tokens", type=int, default=60_000, help="tokens of a continuation [%(default)s]")
    parser.add_argument("--num-texts", type=int, default=256, help="texts that the base writes [%(default)s]")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--max-rows", type=int, default=64, help="rows of each validation set [%(default)s]")
    args = parser.parse_args()
    subprocess.run(["bash", "scripts/prepare_sample.sh"], cwd=REPOSITORY, check=True)
    output = args.output_dir.resolve()
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    counts = []
    for seed in args.seeds:
        train(output, f"base_{seed}", seed, args, make_base(args))
        counts.append(write_replay(output, seed, args))
        changes = train(output, f"arms_{seed}", seed, args, make_arms(output, seed, args))
        for name, change in zip(ARMS, changes, strict=True):
            results[name].append(change)
        print(json.dumps({name: values[-1] for name, values in results.items()}), flush=True)
    table = render_table(results)
    content = {"settings": vars(args), "replay": counts, "changes": results}
    (output / "results.json").write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    (output / "results.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def make_base(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the base's training."""
    return {
        "init_from": "random",
        "train_tokens": args.base_tokens,
        "schedule": {"kind": "cosine", "peak_lr": 4e-3, "final_lr": 4e-4, "warmup_share": 0.05},
        "sources": {"general": {"path": f"{PACKED}/general_train_text_document"}},
        "checkpoint": {"keep_last": 1},
    }


def make_arms(output: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the three continuations, each of them a phase."""
    return {
        "init_from": str(output / f"base_{seed}"),
        "schedule": {"kind": "cosine", "peak_lr": 2e-3, "final_lr": 2e-4, "warmup_share": 0.05},
        "restart_phases": True,
        "sources": {
            "code": {"path": f"{PACKED}/code_train_text_document"},
            "general": {"path": f"{PACKED}/general_train_text_document"},
            "replay": {"path": str(output / f"replay_{seed}_text_document")},
        },
        "phases": [{"name": name, "tokens": args.tokens, "blend": blend} for name, blend in ARMS.items()],
        "checkpoint": {"save": False},
    }


def train(
    output: Path, name: str, seed: int, args: argparse.Namespace, settings: dict[str, Any]
) -> list[dict[str, float]]:
    """Train unless complete. Return the changes of the losses at the end of each phase, in nats per token."""
    steps = args.tokens // (4 * 256)
    validation: dict[str, Any] = {
        "max_rows": args.max_rows,
        "sets": {one: {"path": f"{PACKED}/{one}_valid_text_document"} for one in SETS},
    }
    if "phases" in settings:
        validation["every"] = f"{steps} steps"
        for phase in settings["phases"]:
            phase["tokens"] = steps * 4 * 256
    sections = {
        "base_config": [str(REPOSITORY / f"configs/base/{one}.yaml") for one in ("cpu_tiny", "qwen3_tiny")],
        "seed": seed,
        "output_dir": str(output),
        "model": {"model_config": {"num_hidden_layers": args.layers, "hidden_size": args.hidden}},
        "cpt": {"run_name": name, "validation": validation, **settings},
    }
    config = output / f"{name}.yaml"
    config.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    metrics = output / name / "metrics.jsonl"
    num_phases = len(settings.get("phases", [1]))
    if len(read_changes(metrics)) < num_phases:
        command = [sys.executable, "run_cpt.py", "--config", str(config), "--resume_training", "never", "--no-verify"]
        with (output / f"{name}.log").open("w", encoding="utf-8") as log:
            subprocess.run(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, check=True)
    return read_changes(metrics)


def read_changes(metrics: Path) -> list[dict[str, float]]:
    """Return the changes of the losses from step 0 to each later validation."""
    losses: dict[int, dict[str, float]] = {}
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    for record in map(json.loads, lines):
        if record["kind"] == "validation":
            losses.setdefault(record["step"], {})[record["name"]] = record["loss"]
    whole = [values for _, values in sorted(losses.items()) if len(values) == len(SETS)]
    return [{name: values[name] - whole[0][name] for name in SETS} for values in whole[1:]]


def write_replay(output: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Generate and pack replay text, and return its counts."""
    text = output / f"replay_{seed}.jsonl"
    if not text.exists():
        base = [str(output / f"base_{seed}"), str(text), "--tokenizer", "data/sample/tokenizer"]
        run(
            "tools/generate_replay.py",
            *base,
            "--num-texts",
            str(args.num_texts),
            "--max-tokens",
            "255",
            "--seed",
            str(seed),
        )
    run("tools/preprocess_data.py", "--input", str(text), "--output-prefix", str(output / f"replay_{seed}"),
        "--seq-length", "256", "--tokenizer-name-or-path", "data/sample/tokenizer", "--overwrite")  # fmt: skip
    record: dict[str, Any] = json.loads(text.with_name(f"{text.name}.counts.json").read_text(encoding="utf-8"))
    return record


def run(script: str, *arguments: str) -> None:
    """Run a program of the repository."""
    subprocess.run([sys.executable, script, *arguments], cwd=REPOSITORY, check=True)


if __name__ == "__main__":
    sys.exit(main())
