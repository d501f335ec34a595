"""Write results that a refactoring must not change, one file per result, for comparison with `diff -r`.

    python benchmarks/snapshot.py /tmp/before            in the tree before the change
    python benchmarks/snapshot.py /tmp/after             in the tree after it
    diff -r /tmp/before /tmp/after

Resolved YAMLs and plans of all shipped configurations, --help of all tools, checksums of a small packed dataset, and
with --train the losses of a tiny run that is stopped and resumed (about two minutes more).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ascend_cpt import __version__
from ascend_cpt.config.loader import load_config
from ascend_cpt.config.parallel_layout import uses_cpu
from ascend_cpt.run.mindformers_yaml import make_mindformers_config, render_yaml
from ascend_cpt.run.planning.assumed_run import choose_world_size, resolve_with_placeholders

METRIC_KEYS = ("kind", "step", "name", "loss", "lr", "learning_rate", "grad_norm", "tokens")


def main() -> int:
    """Write the snapshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--train", action="store_true", help="also train, stop and resume a tiny run")
    args = parser.parse_args()
    configs = sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if path.parent.name not in ("base", "stages"))
    for path in configs:
        name = f"{path.parent.name}_{path.stem}"
        write(args.output / "resolved" / f"{name}.yaml", render_resolved(path))
        if not uses_cpu(load_config(path)):
            write(args.output / "plans" / f"{name}.json", run("tools/plan.py", str(path), "--json", "--suggest"))
    for tool in ["run_cpt.py", *sorted(f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py"))]:
        write(args.output / "help" / f"{Path(tool).stem}.txt", run(tool, "--help"))
    with tempfile.TemporaryDirectory() as folder:
        write(args.output / "packed.txt", pack_sample(Path(folder)))
        if args.train:
            write(args.output / "losses.jsonl", train_sample(Path(folder)))
    return 0


def render_resolved(path: Path) -> str:
    """Return the MindFormers YAML for a configuration with assumed datasets, or the error."""
    config = load_config(path)
    try:
        resolved = resolve_with_placeholders(config, 2 if uses_cpu(config) else choose_world_size(config, None, 8))
    except ValueError as error:
        return f"refused: {str(error).replace(str(ROOT), '.')}\n"
    text = render_yaml(make_mindformers_config(resolved, resume_from=None, init_from=None), "snapshot")
    return text + "# fingerprint: " + json.dumps(resolved.fingerprint(), sort_keys=True, default=str) + "\n"


def pack_sample(folder: Path) -> str:
    """Pack the sample corpus in two formats and return the checksums of all files."""
    run("tools/make_sample_corpus.py", "--output-dir", str(folder / "sample"))
    for output_format in ("mindrecord", "mmap"):
        for domain in ("general", "code"):
            run(
                "tools/preprocess_data.py",
                *("--input", str(folder / "sample" / domain / "train.parquet")),
                *("--tokenizer-name-or-path", str(folder / "sample/tokenizer")),
                *("--output-prefix", str(folder / output_format / domain)),
                *("--output-format", output_format, "--n-subs", "2"),
                *(("--seq-length", "256") if output_format == "mindrecord" else ()),
            )
    files = sorted(path for name in ("mindrecord", "mmap") for path in (folder / name).iterdir() if path.is_file())
    return "".join(
        f"{hashlib.sha256(mask(path.read_bytes(), folder)).hexdigest()}  {path.name}\n"
        for path in files
        if path.suffix != ".db"  # SQLite: the bytes depend on the library, and the size is in the manifest
    )


def mask(content: bytes, folder: Path) -> bytes:
    """Return a file's content without the temporary folder's name and the package version."""
    version = f'"ascend_cpt": "{__version__}"'.encode()
    return content.replace(str(folder).encode(), b".").replace(version, b'"ascend_cpt": ""')


def train_sample(folder: Path) -> str:
    """Train 24 steps in one process, stopping at step 10 and resuming. Return the records without times."""
    for stop in ("10", "24"):
        run(
            "run_cpt.py",
            *("--config", str(ROOT / "configs/qwen3/cpt_qwen3_tiny_base.yaml"), "--output_dir", str(folder / "output")),
            *("--set", "cpt.train_tokens=32768", "--set", "cpt.validation=null", "--set", "cpt.run_name=run"),
            *("--train_dataset_dir", str(folder / "mindrecord/general_text_document")),
            *("--stop-at-step", stop),
        )
    records = [json.loads(line) for line in (folder / "output/run/metrics.jsonl").read_text("utf-8").splitlines()]
    kept = [{key: record[key] for key in METRIC_KEYS if key in record} for record in records]
    return "".join(json.dumps(record) + "\n" for record in kept if record)


def run(script: str, *arguments: str) -> str:
    """Run a program from the repository. Return its output with the repository's path replaced by `.`.

    Raises:
        SystemExit: the program crashed.
    """
    environ = os.environ | {"COLUMNS": "100"}
    command = [sys.executable, str(ROOT / script), *arguments]
    result = subprocess.run(command, text=True, capture_output=True, env=environ)
    if "Traceback" in result.stderr or result.returncode not in (0, 1):
        sys.exit(f"{script} {' '.join(arguments)}: exit code {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout.replace(str(ROOT), ".")


def write(path: Path, text: str) -> None:
    """Write a snapshot file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if shutil.which("diff") is None:
        print("note: no diff on the PATH", file=sys.stderr)
    sys.exit(main())
