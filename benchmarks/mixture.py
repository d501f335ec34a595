"""Test the mixture search on four sources: its blend against a grid of measured blends, and its bands with new runs.

    python benchmarks/mixture.py [--output-dir output/mixture] [--proxies 14] [--confirm 10] [--steps 16]

The sources are parts of the Python installation: language reference (topics), docstrings, source code, and tables of
character encodings. A tiny Qwen3 (one layer, 0.6M parameters) is trained on the first two, and its training is
continued on blends of all four. Everything is resumed by the same command. Writes results.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from ascend_cpt.data.sample import Document, collect_domains, split_documents

SOURCES = ("topics", "docstrings", "code", "tables")
SEQ_LENGTH, BATCH, BASE_STEPS = 128, 4, 80
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": SEQ_LENGTH,
}


def main() -> int:
    """Run what is missing and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("output/mixture"))
    parser.add_argument("--proxies", type=int, default=14, help="sampled blends [%(default)s]")
    parser.add_argument("--confirm", type=int, default=10, help="new runs of blends of the frontier [%(default)s]")
    parser.add_argument("--steps", type=int, default=16, help="steps of a proxy [%(default)s]")
    parser.add_argument(
        "--parts", type=int, default=2, help="shares of the grid are multiples of 1 / PARTS [%(default)s]"
    )
    args = parser.parse_args()
    output = args.output_dir.resolve()
    output.mkdir(parents=True, exist_ok=True)
    pack_sources(output / "data")
    config = write_configs(output, args.steps)
    run("run_cpt.py", "--config", str(output / "base.yaml"))
    general = ["--general", "topics", "--general", "docstrings"]
    run("tools/search_mixture.py", str(config), str(output / "search"), *general, "--proxies", str(args.proxies),
        "--confirm", str(args.confirm))  # fmt: skip
    grid = list_grid(args.parts)
    blends = [word for blend in grid for word in ("--blend", json.dumps(blend))]
    run("tools/search_mixture.py", str(config), str(output / "grid"), *general, "--proxies", "1", *blends)
    results = compare(output)
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))
    return 0


def run(script: str, *arguments: str) -> None:
    """Run a program of the repository. A search whose fit fails exits with 1, which the comparison shows."""
    result = subprocess.run([sys.executable, script, *arguments], cwd=REPOSITORY, check=False)
    if result.returncode not in (0, 1) or (result.returncode and script == "run_cpt.py"):
        sys.exit(result.returncode)


def pack_sources(folder: Path) -> None:
    """Write and pack the four sources, unless this is done."""
    subprocess.run(["bash", "scripts/prepare_sample.sh"], cwd=REPOSITORY, check=True)
    for name, documents in collect_sources().items():
        for part, chosen in split_documents(documents).items():
            prefix = folder / f"{name}_{part}"
            if prefix.with_name(f"{prefix.name}_text_document.manifest.json").exists():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            text = folder / f"{name}_{part}.jsonl"
            text.write_text("".join(json.dumps({"text": one.text}) + "\n" for one in chosen), encoding="utf-8")
            run("tools/preprocess_data.py", "--input", str(text), "--output-prefix", str(prefix), "--seq-length",
                str(SEQ_LENGTH), "--tokenizer-name-or-path", "data/sample/tokenizer")  # fmt: skip


def collect_sources() -> dict[str, list[Document]]:
    """Return the documents of each source."""
    domains = collect_domains()
    import encodings

    tables = [
        Document(text=path.read_text(encoding="utf-8"), source=path.name, module=path.name)
        for path in sorted(Path(encodings.__file__).parent.glob("*.py"))
    ]
    return {
        "topics": [one for one in domains["general"] if one.source.startswith("topic ")],
        "docstrings": [one for one in domains["general"] if not one.source.startswith("topic ")],
        "code": domains["code"],
        "tables": [one for one in tables if "decoding_table" in one.text],
    }


def write_configs(output: Path, steps: int) -> Path:
    """Write the configurations of the base and of the search. Return the second."""
    data = output / "data"
    shared: dict[str, Any] = {
        "seq_length": SEQ_LENGTH,
        "global_batch_size": BATCH,
        "validation": {
            "max_rows": 12,
            "sets": {name: {"path": str(data / f"{name}_valid_text_document")} for name in SOURCES},
        },
    }
    paths = {name: {"path": str(data / f"{name}_train_text_document")} for name in SOURCES}
    rate = {"kind": "cosine", "warmup_share": 0.1}
    base = {
        "run_name": "base",
        "init_from": "random",
        "train_tokens": BASE_STEPS * BATCH * SEQ_LENGTH,
        "schedule": {**rate, "peak_lr": 4e-3, "final_lr": 1e-3},
        "sources": {name: paths[name] for name in SOURCES[:2]},
    }
    proxy = {
        "init_from": str(output / "base"),
        "train_tokens": steps * BATCH * SEQ_LENGTH,
        "schedule": {**rate, "peak_lr": 5e-3, "final_lr": 5e-4},
        "sources": paths,
    }
    for name, cpt in (("base", base), ("search", proxy)):
        sections = {
            "base_config": [str(REPOSITORY / f"configs/base/{one}.yaml") for one in ("cpu_tiny", "qwen3_tiny")],
            "output_dir": str(output),
            "model": {"model_config": SIZES},
            "cpt": {**shared, **cpt},
        }
        (output / f"{name}.yaml").write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    return output / "search.yaml"


def list_grid(parts: int) -> list[dict[str, int]]:
    """Return all blends whose shares are multiples of 1 / parts."""
    return [
        {name: count for name, count in zip(SOURCES, counts, strict=True) if count}
        for counts in itertools.product(range(parts + 1), repeat=len(SOURCES))
        if sum(counts) == parts
    ]


def compare(output: Path) -> dict[str, Any]:
    """Return the mean measured loss of the recommended blend and of the grid, and the errors of the search."""
    outcome = json.loads((output / "search/mixture.json").read_text(encoding="utf-8"))
    search = json.loads((output / "search/search.json").read_text(encoding="utf-8"))
    grid = json.loads((output / "grid/search.json").read_text(encoding="utf-8"))
    blend = outcome["recommended"]["blend"]
    shares = [blend.get(name, 0.0) for name in search["sources"]]
    (found,) = [one for one in search["results"] if one["shares"] == shares and not one["error"]]
    loss = _mean(found["values"])
    losses = [_mean(one["values"]) for one in grid["results"] if not one["error"]]
    best = min((one for one in grid["results"] if not one["error"]), key=lambda one: _mean(one["values"]))
    return {
        "recommended": blend,
        "mean_loss": loss,
        "grid": {"blends": len(losses), "best": min(losses), "worst": max(losses), "best_shares": best["shares"]},
        "above_best": loss / min(losses) - 1,
        "confirmed": outcome.get("confirmed"),
        "fits": outcome["fits"],
    }


def _mean(values: dict[str, float]) -> float:
    """Return the loss that the search minimizes: the mean over forgetting and gain sets, each with half the weight."""
    return (values["topics"] + values["docstrings"]) / 4 + (values["code"] + values["tables"]) / 4


if __name__ == "__main__":
    sys.exit(main())
