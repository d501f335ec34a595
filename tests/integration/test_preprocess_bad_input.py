"""User errors of the preprocessing tool: exit code 2 and a one-line message with the remedy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "preprocess_data.py"


@pytest.fixture(scope="module")
def tokenizer(sample: Path) -> Path:
    return sample / "tokenizer"


def run(tokenizer: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the tool in `folder`; `arguments` override the defaults."""
    defaults = ("--output-prefix", "out/x", "--seq-length", 16, "--tokenizer-name-or-path", tokenizer, "--workers", 1)
    command = [sys.executable, str(TOOL), *map(str, (*defaults, *arguments))]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def check_refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, (result.stdout, result.stderr)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and result.stderr.splitlines()[-1] == errors[0], result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in errors[0], errors[0]


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_missing(folder: Path) -> None:
    pass


def make_empty_folder(folder: Path) -> None:
    (folder / "in").mkdir()


def make_empty_file(folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in" / "a.jsonl").write_text("\n\n")


def make_mixed(folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in" / "a.txt").write_text("text")
    (folder / "in" / "b.csv").write_text("text\nx\n")


def make_jsonl_without_text(folder: Path) -> None:
    (folder / "in").mkdir()
    write_rows(folder / "in" / "a.jsonl", [{"content": "x", "url": "y"}] * 3)


def make_csv_without_text(folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in" / "a.csv").write_text("content,url\nx,y\n")


def make_parquet_without_text(folder: Path) -> None:
    (folder / "in").mkdir()
    pq.write_table(pa.table({"content": ["x"], "url": ["y"]}), folder / "in" / "a.parquet")


def make_broken_parquet(folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in" / "a.parquet").write_text("no parquet")


def make_malformed_line(folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in" / "a.jsonl").write_text('{"text": "good"}\n' * 6 + '{"text": "bad\n' + '{"text": "good"}\n' * 3)


def make_array_with_trailing_text(folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in" / "a.json").write_text('[{"text": "a"}]\n[{"text": "b"}]\n')


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (make_missing, ["in: no such file or folder"]),
        (make_empty_folder, ["in: contains no files to read", ".parquet .csv"]),
        (make_empty_file, ["no documents in 0 records"]),
        (make_mixed, ["mixed formats: csv (b.csv), txt (a.txt)", "--format"]),
        (make_jsonl_without_text, ["in/a.jsonl", "no key 'text'; available keys: content, url", "--json-keys"]),
        (make_csv_without_text, ["in/a.csv", "no key 'text'; available keys: content, url"]),
        (make_parquet_without_text, ["in/a.parquet", "no column 'text'; its columns are: content, url"]),
        (make_broken_parquet, ["in/a.parquet: not a readable parquet file"]),
        (make_malformed_line, ["1 of 10 records rejected (1 malformed)", "in/a.jsonl:7", "out/x.rejects.jsonl"]),
        (make_array_with_trailing_text, ["in/a.json:2: text after the end of the JSON array"]),
    ],
)
def test_bad_input(tokenizer: Path, tmp_path: Path, make: Callable[[Path], None], parts: list[str]) -> None:
    make(tmp_path)
    check_refused(run(tokenizer, tmp_path, "--input", "in"), *parts)
    assert not list(tmp_path.glob("out/*manifest*")), "no dataset is made"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["--handler-name", "GeneralPretrainHandlr"],
            ["GeneralPretrainHandlr: unknown; did you mean GeneralPretrainH"],
        ),
        (
            ["--handler-name", "no_module:Handler"],
            ["no_module:Handler: cannot be loaded", "its folder to PYTHONPATH"],
        ),
        (["--n-subs", 0], ["--n-subs 0: must be at least 1"]),
        (["--seq-length", 0], ["--seq-length 0: must be at least 1"]),
        (["--workers", 0], ["--workers 0"]),
        (["--max-bad-fraction", 2], ["--max-bad-fraction 2.0: must be from 0 to 1"]),
        (["--json-keys", "text", "text"], ["--json-keys: duplicate key"]),
        (["--json-keys", "a/b"], ["--json-keys", "must not contain /"]),
        (["--output-prefix", "out/"], ["--output-prefix out/: must end in a file name"]),
        (["--output-prefix", "in/a.jsonl/x"], ["in/a.jsonl: the output folder cannot be written to"]),
        (["--tokenizer-name-or-path", "missing"], ["missing: no such tokenizer folder"]),
        (["--tokenizer-name-or-path", "in"], ["in: contains no tokenizer.json"]),
        (["--tokenizer-type", "SentencePiece"], ["--tokenizer-model: needed with --tokenizer-type SentencePiece"]),
        (["--tokenizer-type", "TikToken", "--tokenizer-model", "in/a.jsonl"], ["in/a.jsonl: not a tiktoken rank file"]),
        (["--eod-token", "<eod>"], ["'<eod>' is not in the vocabulary"]),
        (["--append-bos"], ["--append-bos", "has no BOS token"]),
        (["--format", "csv"], ["in: contains no csv files to read"]),
    ],
)
def test_bad_settings(tokenizer: Path, tmp_path: Path, arguments: list[object], parts: list[str]) -> None:
    (tmp_path / "in").mkdir()
    write_rows(tmp_path / "in" / "a.jsonl", [{"text": "x"}])
    check_refused(run(tokenizer, tmp_path, "--input", "in", *arguments), *parts)


def test_unknown_flag(tokenizer: Path, tmp_path: Path) -> None:
    result = run(tokenizer, tmp_path, "--input", "in", "--nsubs", 2)
    assert result.returncode == 2 and "--nsubs" in result.stderr


def test_bad_records_are_listed_and_skipped_up_to_the_limit(tokenizer: Path, tmp_path: Path) -> None:
    make_malformed_line(tmp_path)
    with (tmp_path / "in" / "a.jsonl").open("ab") as file:
        file.write(b'{"text": null}\n{"text": 5}\n{"text": ""}\n{"other": 1}\n{"text": "\xff"}\n')
    check_refused(run(tokenizer, tmp_path, "--input", "in", "--n-subs", 3), "6 of 15 records rejected")
    again = run(tokenizer, tmp_path, "--input", "in", "--n-subs", 3, "--max-bad-fraction", 0.5)
    assert again.returncode == 0, again.stderr
    assert "3 of 3 shards are already packed" in again.stderr, "the work of the refused run is not lost"
    assert "9 documents" in again.stdout and "6 records rejected" in again.stdout
    listed = [json.loads(line) for line in (tmp_path / "out" / "x.rejects.jsonl").read_text().splitlines()]
    assert [(reject["file"], reject["line"], reject["kind"]) for reject in listed] == [
        ("in/a.jsonl", 7, "malformed"),
        ("in/a.jsonl", 11, "null"),
        ("in/a.jsonl", 12, "wrong_type"),
        ("in/a.jsonl", 13, "empty"),
        ("in/a.jsonl", 14, "missing_key"),
        ("in/a.jsonl", 15, "invalid_utf8"),
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_output_folder(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_rows(tmp_path / "in" / "a.jsonl", [{"text": "x"}])
    (tmp_path / "out").mkdir(mode=0o500)
    check_refused(run(tokenizer, tmp_path, "--input", "in"), "out: the output folder cannot be written to")


def test_two_runs_with_one_output_prefix(tokenizer: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    write_rows(tmp_path / "in" / "a.jsonl", [{"text": "x"}])
    with (tmp_path / "out" / "x.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        check_refused(run(tokenizer, tmp_path, "--input", "in"), "another run is writing this output")
    assert run(tokenizer, tmp_path, "--input", "in").returncode == 0, "a lock that nobody holds is no hindrance"
