"""Compares near-duplicates and decontamination with datatrove: decisions, and MB of text per second of one core.

    python benchmarks/near_duplicates.py TEXTS.jsonl --datatrove .venv-filters/bin/python --items VALID.jsonl

Each line of TEXTS has the key `text`. Each trial runs our pass and datatrove's one after the other, both with reading,
in one process; CPU seconds are compared, because other programs may use the machine. `--planted N` uses N random texts
with edited copies instead of a file, and `--python` also measures our passes without the compiled kernel.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO_ROOT))

import numpy as np

from ascend_cpt.data.selection.decontamination import KIND, Decontamination, build_index, drop_matches, match_shard
from ascend_cpt.data.selection.evaluation_items import find_evaluation_files
from ascend_cpt.data.selection.near_duplicates import MinhashConfig, drop_near_duplicates, sign_shard
from ascend_cpt.data.selection.words.compiled import build_library
from ascend_cpt.data.shards.documents import load_dropped, with_dropped
from ascend_cpt.data.shards.task import ShardTask
from tests.reference.make_minhash_reference import make_texts
from tests.selection import make_tasks

PROGRAM = REPO_ROOT / "tests/reference/make_minhash_reference.py"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="?", type=Path, help="JSON Lines file with the key text")
    parser.add_argument("--planted", type=int, metavar="N", help="use N random texts with edited copies")
    parser.add_argument("--items", type=Path, help="JSON Lines file with validation texts")
    parser.add_argument("--datatrove", help="Python interpreter with datatrove; without it, only our speed is measured")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--python", action="store_true", help="also measure without the compiled kernel")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = read_texts(args)
        records = [{"text": text} for text in texts]
        (task,) = make_tasks(folder, records, 1)
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        print(f"{len(texts)} texts, {megabytes:.2f} MB")
        library = build_library(folder)
        jobs = [("near-duplicates", partial(find_near_duplicates, task), "cluster", None)]
        if args.items:
            jobs.append(("decontamination", partial(decontaminate, task, args.items), "decontaminate", args.items))
        for name, ours, mode, items in jobs:
            measure(name, ours, mode, items, folder, library, megabytes, args)
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def read_texts(args: argparse.Namespace) -> list[str]:
    """Return the texts to use."""
    if args.planted:
        return make_texts(1, args.planted, 120)
    with args.texts.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def measure(
    name: str,
    ours: Callable[[Path, Path | None], tuple[float, list[int]]],
    mode: str,
    items: Path | None,
    folder: Path,
    library: Path | None,
    megabytes: float,
    args: argparse.Namespace,
) -> None:
    """Print our speed, datatrove's, their ratio, and whether the decisions are equal."""
    seconds: list[float] = []
    ratios: list[float] = []
    removed: list[int] = []
    theirs: dict[str, Any] = {}
    for trial in range(args.trials):
        work = folder / f"{name}{trial}"
        work.mkdir()
        elapsed_s, removed = ours(work, library)
        seconds.append(elapsed_s)
        if args.datatrove:
            theirs = run_datatrove(args.datatrove, mode, folder, items)
            ratios.append(theirs.get("signature_s", theirs.get("seconds")) / elapsed_s)
    print(f"{name}: {megabytes / statistics.median(seconds):.1f} MB/s (best {megabytes / min(seconds):.1f}), "
          f"{len(removed)} removed")  # fmt: skip
    if args.datatrove:
        their_s = theirs.get("signature_s", theirs.get("seconds"))
        print(
            f"  datatrove: {megabytes / their_s:.2f} MB/s; ratio {statistics.median(ratios):.0f} "
            f"({min(ratios):.0f} to {max(ratios):.0f}); {describe_decisions(removed, theirs)}"
        )
    if args.python:
        (folder / f"{name}python").mkdir()
        elapsed_s, again = ours(folder / f"{name}python", None)
        print(f"  without the compiled kernel: {megabytes / elapsed_s:.2f} MB/s, same decisions: {again == removed}")


def find_near_duplicates(task: ShardTask, work: Path, library: Path | None) -> tuple[float, list[int]]:
    """Return the CPU seconds of the signatures, and the dropped documents."""
    tasks = with_dropped([task], work, ("near-duplicate",))
    begin_s = time.process_time()
    sign_shard(tasks[0], lambda progress: None, config=MinhashConfig(), library=library)
    elapsed_s = time.process_time() - begin_s
    drop_near_duplicates(tasks, MinhashConfig(), 0)
    return elapsed_s, read_dropped(tasks[0])


def decontaminate(task: ShardTask, items: Path, work: Path, library: Path | None) -> tuple[float, list[int]]:
    """Return the CPU seconds of the search for n-grams, and the dropped documents."""
    tasks = with_dropped([task], work, (KIND,))
    files = tuple(find_evaluation_files([str(items)]))
    build_index(Decontamination(files=files, key="text", n=13, action="drop"), work, library)
    begin_s = time.process_time()
    match_shard(tasks[0], lambda progress: None, n=13, library=library)
    elapsed_s = time.process_time() - begin_s
    drop_matches(tasks, 0)
    return elapsed_s, read_dropped(tasks[0])


def read_dropped(task: ShardTask) -> list[int]:
    """Return the dropped documents of a shard."""
    assert task.dropped is not None
    return [int(number) for number in load_dropped(task.dropped, 1)[0]]


def run_datatrove(python: str, mode: str, folder: Path, items: Path | None) -> dict[str, Any]:
    """Run datatrove on the same file."""
    output = folder / "datatrove.json"
    command = [python, str(PROGRAM), mode, str(folder / "in.jsonl"), str(output)]
    subprocess.run([*command, *([str(items)] if items else [])], check=True, capture_output=True)
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return result


def describe_decisions(removed: list[int], theirs: dict[str, Any]) -> str:
    """Compare the removed documents; of a cluster, datatrove may keep another one than the first."""
    same = f"removed by both {len(set(removed) & set(theirs['removed']))} of {len(theirs['removed'])}"
    if "clusters" not in theirs:
        return same
    clusters = np.array(theirs["clusters"])
    members = np.flatnonzero(clusters >= 0)
    _, first = np.unique(clusters[members], return_index=True)
    others = np.setdiff1d(members, members[first])
    return f"{same}; {len(first)} clusters, all but the first of each: equal = {np.array_equal(others, removed)}"


if __name__ == "__main__":
    main()
