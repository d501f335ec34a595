"""Compare the speed of preprocessing with other tools and with the limit of the machine.

    python benchmarks/preprocess.py [--mb 200] [--tokenizer /models/Qwen3-8B-Base] [--json result.json]

Gathers text on this machine (Python sources, documentation, headers; no file twice), packs it with
tools/preprocess_data.py and tokenizes it with the other tools that are available: a plain loop over the tokenizers
library, datatrove (in its own environment, see --datatrove-python) and MindFormers' llama_preprocess.py (see
--llama-preprocess). Runs alternate; medians are printed. `net` excludes the time of the same command for a single
document (startup), which leaves the steady state. The ceiling is cores / (read + encode + write + checksum), with each
part measured separately in seconds per token on one core. Wall times need an idle machine; CPU seconds do not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

PEERS = Path(__file__).with_name("preprocess_peers.py")
ENDINGS = (".py", ".pyi", ".h", ".hpp", ".js", ".md", ".rst", ".txt")
MAX_FILE_BYTES = 2_000_000
SEQ_LENGTH = 4096
MIN_OF_CEILING, MIN_OF_PLAIN, MIN_SCALING, MAX_PEAK_MB = 0.85, 8.0, 1.5, 1000


@dataclass(frozen=True, kw_only=True)
class Run:
    """The resources used by a process and its children."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    """Peak memory of its largest process."""
    num_tokens: int
    begins_s: float = 0.0
    """Time until the first document is encoded."""
    record: Any = None


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A command to measure."""

    name: str
    command: tuple[str, ...]
    """Contains {corpus}, {parts} (a folder with the corpus in one file per core) and {output}."""
    tokens_from: str = "stdout"


def gather(target: Path, num_bytes: int, roots: Sequence[Path]) -> None:
    """Write distinct text files from this machine as JSON Lines. Exit if there are too few."""
    seen: set[bytes] = set()
    total = 0
    with open(target, "w", encoding="utf-8") as output:
        for path in (path for root in roots for path in walk(root)):
            try:
                text = path.read_text(encoding="utf-8") if path.stat().st_size <= MAX_FILE_BYTES else ""
            except (OSError, UnicodeDecodeError):
                continue
            key = hashlib.sha1(text[:2000].encode()).digest()
            if len(text) < 50 or key in seen:
                continue
            seen.add(key)
            output.write(json.dumps({"text": text}) + "\n")
            total += len(text.encode())
            if total >= num_bytes:
                print(f"corpus: {len(seen)} documents, {total / 1e6:.1f} MB of text")
                return
    sys.exit(f"only {total / 1e6:.0f} MB of distinct text found; add folders with --text-root")


def walk(root: Path) -> Iterator[Path]:
    """Yield the text files in a folder and its subfolders, in sorted order."""
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(ENDINGS))


def repeat(source: Path, target: Path, num_bytes: int) -> None:
    """Repeat the source's lines up to `num_bytes`, shifting letters by one in each repetition.

    Repetitions have new words, as a larger corpus would.
    """
    letters = "abcdefghijklmnopqrstuvwxyz"
    total = shift = 0
    with open(target, "w", encoding="utf-8") as output:
        while total < num_bytes:
            table = str.maketrans(letters, letters[shift:] + letters[:shift])
            for line in open(source, encoding="utf-8"):  # noqa: SIM115
                line = json.dumps({"text": json.loads(line)["text"].translate(table)}) + "\n"
                total += output.write(line)
                if total >= num_bytes:
                    break
            shift += 1


def cut(source: Path, folder: Path, num_parts: int) -> Path:
    """Split the lines into `num_parts` files of about equal size and return the folder."""
    folder.mkdir(exist_ok=True)
    size = source.stat().st_size
    with open(source, "rb") as lines:
        for k in range(num_parts):
            with open(folder / f"{k}.jsonl", "wb") as part:
                while lines.tell() < size * (k + 1) // num_parts:
                    part.write(lines.readline())
    return folder


def execute(contender: Contender, corpus: Path, parts: Path, folder: Path) -> Run:
    """Run the command once with a new output folder."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        output = Path(name, "out")
        command = [part.format(corpus=corpus, parts=parts, output=output) for part in contender.command]
        begin_s = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        errors: list[str] = []
        begins: list[float] = []

        def read_errors() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                errors.append(line)
                if line.startswith("tokenizing with"):
                    begins.append(time.monotonic() - begin_s)

        reader = threading.Thread(target=read_errors)
        reader.start()
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - begin_s
        reader.join()
        if status:
            raise RuntimeError(f"{contender.name}: {''.join(errors)[-2000:]}")
        record = read_record(contender, output, printed)
    return Run(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss / 1024,
        num_tokens=record["num_tokens"],
        begins_s=begins[0] if begins else 0.0,
        record=record,
    )


def read_record(contender: Contender, output: Path, printed: str) -> dict[str, Any]:
    """Return the result of a run, with its number of tokens."""
    if contender.tokens_from == "manifest":
        manifest = json.loads(Path(f"{output}_text_document.manifest.json").read_text(encoding="utf-8"))
        return {"num_tokens": manifest["totals"]["num_tokens"]}
    if contender.tokens_from == "mindrecord":
        import sqlite3

        (index,) = output.parent.glob("*.db")
        with sqlite3.connect(index) as connection:
            return {"num_tokens": connection.execute("SELECT COUNT(*) FROM INDEXES").fetchone()[0] * (SEQ_LENGTH + 1)}
    record: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return record


def ours(
    name: str, num_shards: int, *tokenizer: str, source: str = "{corpus}", handling: Sequence[str] = ()
) -> Contender:
    """Return the command for tools/preprocess_data.py."""
    tool = (
        sys.executable,
        str(ROOT / "tools" / "preprocess_data.py"),
        "--input",
        source,
        "--output-prefix",
        "{output}",
    )
    sizes = ("--seq-length", str(SEQ_LENGTH), "--n-subs", str(num_shards), "--workers", str(num_shards))
    return Contender(name=name, command=(*tool, *sizes, *tokenizer, *handling), tokens_from="manifest")


def peer(name: str, key: str, *arguments: str, python: str = sys.executable) -> Contender:
    """Return the command for a program in preprocess_peers.py."""
    return Contender(name=name, command=(python, str(PEERS), key, *arguments))


def compare(
    contenders: Sequence[Contender], corpus: Path, folder: Path, repeats: int, reference: str
) -> dict[str, dict[str, Any]]:
    """Alternate all contenders, print a line for each, and return medians by name, with ratios to `reference`."""
    tiny = folder / f"tiny{corpus.suffix}"
    with open(corpus, encoding="utf-8") as lines:
        tiny.write_text(next(lines), encoding="utf-8")
    num_parts = os.cpu_count() or 1
    parts = cut(corpus, folder / f"{corpus.name}-parts", num_parts)
    tiny_parts = cut(tiny, folder / f"{tiny.name}-parts", 1)
    runs: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
    starts: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
    for _ in range(repeats):
        for contender in contenders:
            starts[contender.name].append(execute(contender, tiny, tiny_parts, folder))
            run = execute(contender, corpus, parts, folder)
            runs[contender.name].append(run)
            print(f"  {contender.name}: {run.wall_s:.2f} s, {run.cpu_s:.2f} CPU-s", file=sys.stderr, flush=True)
    results = {name: summarize(runs[name], starts[name]) for name in runs}
    print(f"{'':34}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}{'Mtok/s':>8}{'net':>8}{'/CPU-s':>8}{'ratio':>7}{'net':>7}")
    for name, result in results.items():
        other = results.get(reference, result)
        for key in ("mtok_per_s", "net_mtok_per_s"):
            result[f"{key}_ratio"] = result[key] / other[key]
        print(
            f"{name:34}{result['wall_s']:8.2f}{result['cpu_s']:8.2f}{result['peak_mb']:9.0f}{result['mtok_per_s']:8.2f}"
            f"{result['net_mtok_per_s']:8.2f}{result['net_mtok_per_cpu_s']:8.2f}{result['mtok_per_s_ratio']:7.2f}"
            f"{result['net_mtok_per_s_ratio']:7.2f}"
        )
    return results


def summarize(runs: Sequence[Run], starts: Sequence[Run]) -> dict[str, Any]:
    """Return medians, excluding startup from net values."""
    wall_s, cpu_s, begins_s = (
        statistics.median(getattr(run, key) for run in runs) for key in ("wall_s", "cpu_s", "begins_s")
    )
    start_wall_s = statistics.median(run.wall_s for run in starts)
    start_cpu_s = statistics.median(run.cpu_s for run in starts)
    num_tokens = runs[0].num_tokens
    return {
        "num_tokens": num_tokens,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "start_wall_s": start_wall_s,
        "start_cpu_s": start_cpu_s,
        "begins_s": begins_s,
        "peak_mb": max(run.peak_mb for run in runs),
        "mtok_per_s": num_tokens / wall_s / 1e6,
        "net_mtok_per_s": (num_tokens - starts[0].num_tokens) / max(wall_s - start_wall_s, 1e-3) / 1e6,
        "net_mtok_per_cpu_s": (num_tokens - starts[0].num_tokens) / max(cpu_s - start_cpu_s, 1e-3) / 1e6,
        "runs": [asdict(run) for run in runs],
    }


def compare_with_ceiling(corpus: Path, tokenizer: str, folder: Path, repeats: int, result: dict[str, Any]) -> dict:
    """Measure the ceiling, and print the ratio of the steady state to it, by wall time and by CPU seconds."""
    contender = peer("ceiling", "ceiling", "{corpus}", "{output}", tokenizer)
    runs = [execute(contender, corpus, corpus, folder).record for _ in range(repeats)]
    parts = {part: statistics.median(run["cpu_s"][part] for run in runs) for part in runs[0]["cpu_s"]}
    per_cpu_s = runs[0]["num_tokens"] / sum(parts.values()) / 1e6
    cores = os.cpu_count() or 1
    speeds = ", ".join(f"{part} {runs[0]['num_tokens'] / seconds / 1e6:.1f}" for part, seconds in parts.items())
    print(f"ceiling: {per_cpu_s * cores:.2f} Mtok/s on {cores} cores (Mtok/s of one core: {speeds})")
    ceiling = {
        "parts_cpu_s": parts,
        "mtok_per_s": per_cpu_s * cores,
        "reached_wall": result["net_mtok_per_s"] / per_cpu_s / cores,
        "reached_cpu": result["net_mtok_per_cpu_s"] / per_cpu_s,
    }
    print(
        f"steady state: {ceiling['reached_wall']:.2f} of it by wall time, {ceiling['reached_cpu']:.2f} by CPU seconds"
    )
    return ceiling


def run_tokenizer(name: str, tokenizer: str, args: argparse.Namespace, corpus: Path, folder: Path) -> dict[str, Any]:
    """Run all comparisons with one Hugging Face tokenizer."""
    print(f"\n{name} tokenizer, {args.mb} MB, {args.repeats} runs each")
    cores = os.cpu_count() or 1
    flags = ("--tokenizer-name-or-path", tokenizer)
    plain = "plain tokenizers loop"
    contenders = [ours(f"ascend_cpt, {n} shards", n, *flags) for n in sorted({cores, 1}, reverse=True)]
    contenders.append(peer(plain, "plain", "{corpus}", "{output}", tokenizer))
    if args.datatrove_python:
        arguments = ("{parts}", "{output}", tokenizer, str(cores))
        contenders.append(peer(f"datatrove, {cores} workers", "datatrove", *arguments, python=args.datatrove_python))
    results = compare(contenders, corpus, folder, args.repeats, plain)
    own = results[contenders[0].name]
    ceiling = compare_with_ceiling(corpus, tokenizer, folder, args.repeats, own)
    print(f"first document encoded after {own['begins_s']:.2f} s")
    judge(f"{name}: of the ceiling, by CPU seconds", ceiling["reached_cpu"], MIN_OF_CEILING)
    judge(f"{name}: times the plain loop, whole process", own["mtok_per_s_ratio"], MIN_OF_PLAIN)
    return {"results": results, "ceiling": ceiling}


def run_sentence_piece(args: argparse.Namespace, corpus: Path, folder: Path) -> dict[str, Any]:
    """Compare with MindFormers' script, which needs a text file and a SentencePiece model, on a tenth of the corpus."""
    print("\nSentencePiece, paragraphs of the first tenth as one text file")
    text = folder / "tenth.txt"
    with open(corpus, encoding="utf-8") as lines, open(text, "w", encoding="utf-8") as output:
        while output.tell() < args.mb * 1e5:
            output.write(json.loads(next(lines))["text"].replace("\r", "") + "\n")
    script = f"import sys; sys.path.insert(0, {os.path.dirname(args.llama_preprocess)!r}); sys.argv[0] = 'x'; "
    script += f"import runpy; runpy.run_path({args.llama_preprocess!r}, run_name='__main__')"
    flags = ("--dataset_type", "wiki", "--input_glob", "{corpus}", "--output_file", "{output}")
    model = ("--model_file", args.sentencepiece_model, "--seq_length", str(SEQ_LENGTH))
    name = "MindFormers llama_preprocess"
    contenders = [
        ours(
            "ascend_cpt, 1 shard", 1, "--tokenizer-type", "SentencePiece", "--tokenizer-model", args.sentencepiece_model
        ),
        Contender(name=name, command=(sys.executable, "-c", script, *flags, *model), tokens_from="mindrecord"),
    ]
    return compare(contenders, text, folder, args.repeats, name)


def run_scaling(args: argparse.Namespace, tokenizer: str, corpus: Path, folder: Path) -> dict[str, Any]:
    """Compare one shard with two on a large file."""
    print(f"\none shard and two, {args.scaling_mb} MB")
    large = folder / "large.jsonl"
    repeat(corpus, large, args.scaling_mb * 1_000_000)
    flags = ("--tokenizer-name-or-path", tokenizer)
    contenders = [ours(f"ascend_cpt, {n} shards", n, *flags) for n in (1, 2)]
    results = compare(contenders, large, folder, args.repeats, contenders[0].name)
    large.unlink()
    judge("net speed with two shards over one", results[contenders[1].name]["net_mtok_per_s_ratio"], MIN_SCALING)
    peak_mb = max(result["peak_mb"] for result in results.values())
    print(f"peak memory of a process: {peak_mb:.0f} MB, limit {MAX_PEAK_MB}: {verdict(peak_mb <= MAX_PEAK_MB)}")
    return results


def judge(what: str, ratio: float, minimum: float) -> None:
    """Print a ratio and whether it reaches its target."""
    print(f"{what}: {ratio:.2f}, target {minimum}: {verdict(ratio >= minimum)}")


def verdict(is_met: bool) -> str:
    """Return the verdict as a word."""
    return "met" if is_met else "MISSED"


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--mb", type=int, default=200, help="text to gather [%(default)s]")
    add("--text-root", type=Path, nargs="+", default=[], help="additional folders with text")
    add("--corpus", type=Path, help="JSON lines file to use instead of gathering text")
    add("--tokenizer", help="Hugging Face folder with a real vocabulary [only the sample tokenizer]")
    add("--no-sample", action="store_true", help="skip the sample tokenizer")
    add("--datatrove-python", help="Python of an environment with datatrove [skipped]")
    add("--llama-preprocess", help="MindFormers' llama_preprocess.py [skipped]")
    add("--sentencepiece-model", help="tokenizer.model for it")
    add("--scaling-mb", type=int, default=0, help="size for comparing one shard with two [skipped]")
    add("--repeats", type=int, default=3, help="[%(default)s]")
    add("--folder", type=Path, help="working folder [a temporary folder]")
    add("--json", type=Path, help="write all results to this file")
    return parser.parse_args()


def main() -> None:
    """Run the comparison."""
    args = parse_args()
    report: dict[str, Any] = {"machine": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()}
    print(f"{os.cpu_count()} cores, load average at start {os.getloadavg()[0]:.1f}")
    for flag in ("tokenizer", "datatrove_python", "llama_preprocess"):
        if not getattr(args, flag):
            print(f"comparisons that need --{flag.replace('_', '-')} are skipped")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        corpus = args.corpus or folder / "corpus.jsonl"
        if not args.corpus:
            roots = [
                Path(path) for path in (*args.text_root, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
            ]
            gather(corpus, args.mb * 1_000_000, [*roots, Path("/usr/share/doc"), Path("/usr/include")])
        tokenizers = {"real": args.tokenizer} if args.tokenizer else {}
        if not args.no_sample:
            # Run in a child process, because a process inherits its parent's peak memory.
            maker = (
                sys.executable,
                str(ROOT / "tools" / "make_sample_corpus.py"),
                "--output-dir",
                str(folder / "sample"),
            )
            subprocess.run(maker, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            tokenizers["sample"] = str(folder / "sample" / "tokenizer")
        for kind, tokenizer in tokenizers.items():
            report[kind] = run_tokenizer(kind, tokenizer, args, corpus, folder)
        if args.llama_preprocess:
            report["sentencepiece"] = run_sentence_piece(args, corpus, folder)
        if args.scaling_mb:
            report["scaling"] = run_scaling(args, next(iter(tokenizers.values())), corpus, folder)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
