"""Dropping documents on the command line: duplicates and datatrove filters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ascend_cpt.data.packed.manifest import load_manifest
from ascend_cpt.data.packed.megatron_indexed import IndexedReader
from ascend_cpt.data.selection.datatrove_filters import PYTHON_VARIABLE

ROOT = Path(__file__).resolve().parents[2]

# Replaces datatrove: drops documents that contain the first letter of the filter name.
STAND_IN = """#!{python}
import json, pathlib, sys
if sys.argv[1] == "-c":
    sys.exit(0)
job = json.load(sys.stdin)
texts = [json.loads(line) for path in sorted(pathlib.Path(job["text"]).iterdir()) for line in open(path)]
for name in [name for name, _ in job["filters"]] + (["MinHash"] if job["minhash"] is not None else []):
    texts = [text for text in texts if name[0] not in text["text"]]
    folder = pathlib.Path(job["survivors"], name)
    folder.mkdir(parents=True)
    (folder / "0").write_text("".join(text["id"] + "\\n" for text in texts))
if any("crash" in arguments for _, arguments in job["filters"]):
    sys.exit("ValueError: bad filter")
"""


def run(tokenizer: Path, folder: Path, prefix: str, *flags: str) -> subprocess.CompletedProcess[str]:
    tool = [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--input", str(folder / "in.jsonl")]
    tool += ["--output-prefix", str(folder / prefix), "--tokenizer-name-or-path", str(tokenizer)]
    command = [*tool, "--output-format", "mmap", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def write_input(folder: Path, texts: list[str]) -> None:
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def read_documents(prefix: Path) -> list[list[int]]:
    reader = IndexedReader(f"{prefix}_text_document")
    ids, offsets = reader.read(0, len(reader))
    return [part.tolist() for part in np.split(ids, offsets[1:-1])]


def test_duplicates(sample: Path, tmp_path: Path) -> None:
    texts = [f"number {k % 7} of seven" for k in range(20)]
    write_input(tmp_path, texts)
    flags = ("--drop-duplicates", "--max-bad-fraction", "0")
    for num_shards in (1, 3):
        done = run(sample / "tokenizer", tmp_path, f"out{num_shards}", *flags, "--n-subs", str(num_shards))
        assert done.returncode == 0, done.stderr
        assert "13 dropped by duplicate" in done.stdout
        manifest = load_manifest(tmp_path / f"out{num_shards}_text_document")
        assert (manifest.num_documents, manifest.left_out, manifest.rejected) == (7, {"duplicate": 13}, {})
        listed = [json.loads(line) for line in (tmp_path / f"out{num_shards}.rejects.jsonl").read_text().splitlines()]
        assert [entry["position"] for entry in listed] == [30 * k for k in range(7, 20)], "lines of 30 bytes"
    assert read_documents(tmp_path / "out1") == read_documents(tmp_path / "out3")
    inspected = [sys.executable, str(ROOT / "tools" / "inspect_data.py"), str(tmp_path / "out1_text_document")]
    output = subprocess.run(inspected, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "dropped documents: 13 duplicate" in output
    write_input(tmp_path, texts[:7])
    assert run(sample / "tokenizer", tmp_path, "plain").returncode == 0
    assert read_documents(tmp_path / "plain") == read_documents(tmp_path / "out1")


def test_other_selection_is_another_dataset(sample: Path, tmp_path: Path) -> None:
    write_input(tmp_path, ["one", "two", "one"])
    assert run(sample / "tokenizer", tmp_path, "out").returncode == 0
    done = run(sample / "tokenizer", tmp_path, "out", "--drop-duplicates")
    assert done.returncode == 2 and "drop_duplicates was False and is now True" in done.stderr
    done = run(sample / "tokenizer", tmp_path, "out2", "--drop-duplicates", "--n-subs", "2", "--sub-range", "0:1")
    assert done.returncode == 2 and "run without a range" in done.stderr
    done = run(
        sample / "tokenizer", tmp_path, "out3", "--drop-duplicates", "--input", f"{tmp_path}/out_text_document.idx"
    )
    assert done.returncode == 2 and "--drop-duplicates: need text" in done.stderr


def test_filters_with_duplicates(sample: Path, tmp_path: Path) -> None:
    write_input(tmp_path, ["one", "the Regex", "two", "one", "Minimal", "the Regex", "RM", "three"])
    stand_in = tmp_path / "stand_in"
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(0o755)
    plan = tmp_path / "filters.yaml"
    plan.write_text(f"python: {stand_in}\nfilters: [RegexFilter: {{regex_exp: x}}]\nminhash: {{}}\n")
    for num_shards in (1, 4):
        flags = ("--drop-duplicates", "--filters", str(plan), "--n-subs", str(num_shards))
        done = run(sample / "tokenizer", tmp_path, f"out{num_shards}", *flags)
        assert done.returncode == 0, done.stderr
        manifest = load_manifest(tmp_path / f"out{num_shards}_text_document")
        assert manifest.left_out == {"MinHash": 1, "RegexFilter": 2, "duplicate": 2} and manifest.num_documents == 3
        assert not (tmp_path / f"out{num_shards}.work").exists()
    plan.write_text(f"python: {stand_in}\nfilters: [RegexFilter: {{crash: 1}}]\n")
    done = run(sample / "tokenizer", tmp_path, "out5", "--filters", str(plan))
    assert done.returncode == 2 and "error: --filters: datatrove failed: ValueError: bad filter" in done.stderr


def test_near_duplicates_and_decontamination(sample: Path, tmp_path: Path) -> None:
    words = [f"w{chr(97 + k % 26)}{chr(97 + k // 26)}" for k in range(400)]
    original, other = " ".join(words), " ".join(reversed(words))
    near = " ".join([*words[:200], "edited", *words[201:]])
    item = "this sentence of exactly thirteen words is in the validation set of us"
    texts = [original, other, "no words", f"Begin. {item.title()}!", near, "no words", original, "plain text"] * 2
    write_input(tmp_path, texts)
    (tmp_path / "valid.jsonl").write_text(json.dumps({"text": item}) + "\n")
    flags = ["--drop-duplicates", "--decontaminate", str(tmp_path / "valid.jsonl"), "--drop-near-duplicates"]
    for name, more in (("out1", ()), ("out3", ("--n-subs", "3", "--workers", "2"))):
        done = run(sample / "tokenizer", tmp_path, name, *flags, *more)
        assert done.returncode == 0, done.stderr
        manifest = load_manifest(tmp_path / f"{name}_text_document")
        assert manifest.left_out == {"contaminated": 1, "duplicate": 10, "near-duplicate": 1}
        assert manifest.num_documents == 4
        listed = json.loads((tmp_path / f"{name}.contamination.jsonl").read_text())
        assert (listed["line"], listed["item"], listed["ngram"]) == (4, f"{tmp_path}/valid.jsonl:1", item)
        assert "1 documents share a 13-gram with an evaluation item, dropped and listed in" in done.stderr
    assert read_documents(tmp_path / "out1") == read_documents(tmp_path / "out3")
    done = run(sample / "tokenizer", tmp_path, "out4", *flags[1:3], "--decontaminate-action", "list", "--n-subs", "5")
    assert done.returncode == 0 and load_manifest(tmp_path / "out4_text_document").num_documents == len(texts)
    listed = [json.loads(line)["line"] for line in (tmp_path / "out4.contamination.jsonl").read_text().splitlines()]
    assert listed == [4, 12], "also with line numbers for parts that begin inside the file"
    (tmp_path / "valid.jsonl").write_text(json.dumps({"text": item + " more"}) + "\n")
    done = run(sample / "tokenizer", tmp_path, "out4", *flags[1:3], "--decontaminate-action", "list", "--n-subs", "5")
    assert done.returncode == 2 and "settings: decontaminate was" in done.stderr


def test_minhash_twice_is_an_error(sample: Path, tmp_path: Path) -> None:
    write_input(tmp_path, ["one"])
    (tmp_path / "filters.yaml").write_text("minhash: {}\n")
    flags = ("--filters", str(tmp_path / "filters.yaml"), "--drop-near-duplicates")
    done = run(sample / "tokenizer", tmp_path, "out", *flags)
    assert done.returncode == 2 and "has `minhash` too; remove one of them" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(PYTHON_VARIABLE not in os.environ, reason=f"{PYTHON_VARIABLE} names no Python with datatrove")
def test_real_datatrove(sample: Path, tmp_path: Path) -> None:
    words = np.random.default_rng(0).choice(["river", "stone", "light", "and", "the", "walks", "sings"], 300).tolist()
    story = " ".join(words)
    write_input(tmp_path, [story, "short", story + " again", "buy now\n" * 300, " ".join(reversed(words))])
    plan = tmp_path / "filters.yaml"
    plan.write_text("filters:\n- GopherRepetitionFilter: {top_n_grams: [], dup_n_grams: []}\nminhash: {n_grams: 3}\n")
    for num_shards in (1, 2):
        flags = ("--filters", str(plan), "--n-subs", str(num_shards))
        done = run(sample / "tokenizer", tmp_path, f"out{num_shards}", *flags)
        assert done.returncode == 0, done.stderr
        manifest = load_manifest(tmp_path / f"out{num_shards}_text_document")
        assert manifest.left_out == {"GopherRepetitionFilter": 1, "MinHash": 1}
    assert read_documents(tmp_path / "out1") == read_documents(tmp_path / "out2")
