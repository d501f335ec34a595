"""Bad inputs of tools/preprocess_data.py: each ends with exit code 2 and one line, and leaves nothing half-written.

The tool runs in this process, so that more than two hundred cases take seconds.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from ascend_cpt.errors import run_command
from tests.attacks.bad_contents import BAD, CONTENTS, GOOD, INDEXED

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[[Path], object]
pytestmark = pytest.mark.timeout(30)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("preprocess_data", ROOT / "tools" / "preprocess_data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(ROOT / "tests/reference/tasks/tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    return folder


@pytest.fixture
def run(
    tool: ModuleType, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, str]]:
    """Return a function that runs the tool in `tmp_path` and returns its exit code and the text on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def run_tool(*arguments: object) -> tuple[int, str]:
        defaults = ["--input", "in", "--output-prefix", "out/x", "--seq-length", "16", "--workers", "1"]
        defaults += ["--tokenizer-name-or-path", str(tokenizer)]
        monkeypatch.setattr(sys, "argv", ["preprocess_data.py", *defaults, *map(str, arguments)])
        capsys.readouterr()
        try:
            code = run_command(tool.main)
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
        return code, capsys.readouterr().err

    return run_tool


def check_refused(outcome: tuple[int, str], folder: Path, message: str) -> None:
    code, errors = outcome
    assert "Traceback" not in errors, errors[-3000:]
    assert code == 2, outcome
    last = errors.splitlines()[-1]
    assert last.startswith(("error: ", "preprocess_data.py: error: ")) and message in last, last[:1000]
    assert len(last) < 1000 and (last.isprintable()), last
    assert sum(line.startswith("error: ") for line in errors.splitlines()) <= 1, errors
    written = [path.name for path in (folder / "out").rglob("*")] if (folder / "out").is_dir() else []
    outside_work = [path.name for path in (folder / "out").glob("*")] if written else []
    assert not [name for name in outside_work if ".mindrecord" in name or "manifest" in name], outside_work
    assert not [name for name in written if name.endswith((".lock", ".tmp"))], written


@pytest.mark.parametrize(("name", "file", "content", "message"), CONTENTS, ids=[case[0] for case in CONTENTS])
def test_contents(run: Callable, tmp_path: Path, name: str, file: str, content: bytes, message: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / file).write_bytes(content)
    check_refused(run(), tmp_path, message)


@pytest.mark.parametrize(("name", "index", "data", "message"), INDEXED, ids=[case[0] for case in INDEXED])
def test_indexed_datasets(
    run: Callable, tmp_path: Path, name: str, index: bytes, data: bytes | None, message: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.idx").write_bytes(index)
    if data is not None:
        (tmp_path / "in" / "a.bin").write_bytes(data)
    check_refused(run(), tmp_path, message)


def make_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "in" / "a.jsonl"))


def write_good(folder: Path, name: str = "in/a.jsonl") -> None:
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(GOOD)


# Name, what to make (folder `in` exists), arguments, part of the error.
FILES: list[tuple[str, Make, Sequence[object], str]] = [
    ("missing", lambda folder: None, ["--input", "missing"], "missing: no such file or folder"),
    ("missing in a file", write_good, ["--input", "in/a.jsonl/b"], "in/a.jsonl/b: no such file or folder"),
    ("empty folder", lambda folder: None, [], "in: contains no files to read"),
    ("only hidden files", lambda folder: write_good(folder, "in/.a.jsonl"), [], "in: contains no files to read"),
    ("only unknown files", lambda folder: write_good(folder, "in/a.docx"), [], "in: contains no files to read"),
    ("unknown extension", lambda folder: write_good(folder, "in/a.docx"), ["--input", "in/a.docx"], "unknown file ext"),
    ("no extension", lambda folder: write_good(folder, "in/a"), ["--input", "in/a"], "unknown file extension"),
    ("folder with an extension", lambda folder: (folder / "in/a.jsonl").mkdir(), [], "contains no files to read"),
    ("glob without matches", write_good, ["--input", "in/*.csv"], "no file matches it as a glob"),
    ("glob of folders", lambda folder: (folder / "in/b").mkdir(), ["--input", "in/*"], "contains no files to read"),
    ("recursive glob", write_good, ["--input", "in/**/*.csv"], "no file matches it as a glob"),
    ("open bracket", write_good, ["--input", "in/[a"], "no file matches it as a glob"),
    ("empty path", write_good, ["--input", ""], "--input '': a path must have"),
    ("path of 5,000 characters", write_good, ["--input", "p" * 5000], "File name too long"),
    ("escape sequence in a path", write_good, ["--input", "in/\x1b[2Jx"], "in/x: no such file or folder"),
    ("mixed formats", lambda folder: [write_good(folder, f"in/a.{end}") for end in ("csv", "txt")], [], "mixed"),
    ("pipe", lambda folder: os.mkfifo(folder / "in/a.jsonl"), [], "contains no files to read"),
    ("named pipe", lambda folder: os.mkfifo(folder / "in/a.jsonl"), ["--input", "in/a.jsonl"], "a named pipe, not a"),
    ("named socket", make_socket, ["--input", "in/a.jsonl"], "a socket, not a regular file"),
    ("named device", lambda folder: (folder / "in/a.jsonl").symlink_to("/dev/zero"), ["--input", "in/a.jsonl"],
     "a device, not a regular file"),
    ("dangling link", lambda folder: (folder / "in/a.jsonl").symlink_to("none"), [], "a.jsonl: cannot be read: No"),
    ("named dangling link", lambda folder: (folder / "in/a.jsonl").symlink_to("none"), ["--input", "in/a.jsonl"],
     "in/a.jsonl"),
    ("link to itself", lambda folder: (folder / "in/a.jsonl").symlink_to("a.jsonl"), [], "a.jsonl: cannot be read"),
    ("named link to itself", lambda folder: (folder / "in/a.jsonl").symlink_to("a.jsonl"), ["--input", "in/a.jsonl"],
     "in/a.jsonl"),
    ("name that is not utf-8", lambda folder: (folder / os.fsdecode(b"in/\xff.jsonl")).write_bytes(b"x"), [], BAD),
    ("only links in a loop", lambda folder: (folder / "in/up").symlink_to(".."), ["--input", "in/up/in"],
     "contains no files to read"),
]  # fmt: skip

HANDLERS = """
class NeedsArguments:
    def __init__(self, a): pass
    def extract(self, record): yield record
class NoExtract: pass
class Raises:
    def extract(self, record): raise KeyError(record["text"])
class RaisesLate:
    def extract(self, record):
        yield record
        raise ValueError("\\x1b[2J")
class Nothing:
    def extract(self, record): return []
class ReturnsNone:
    def extract(self, record): return None
class Texts:
    def extract(self, record): yield record["text"]
class Numbers:
    def extract(self, record): yield {"text": 3}
class Long:
    def extract(self, record): yield {"text": "long " * (4 << 20)}
NOT_A_CLASS = 3
"""

# Arguments, part of the error.
SETTINGS: list[tuple[Sequence[object], str]] = [
    (["--seq-length", 0], "--seq-length 0: must be at least 1"),
    (["--seq-length", -3], "--seq-length -3"),
    (["--seq-length", "x"], "argument --seq-length: invalid int value"),
    (["--seq-length", 1.5], "argument --seq-length: invalid int value"),
    (["--seq-length", 10**15], "--seq-length 1000000000000000: must be"),
    (["--n-subs", 0], "--n-subs 0: must be at least 1"),
    (["--n-subs", 10**12], "--n-subs 1000000000000: must be"),
    (["--workers", 0], "--workers 0"),
    (["--max-bad-fraction", 2], "--max-bad-fraction 2.0: must be from 0 to 1"),
    (["--max-bad-fraction", "nan"], "--max-bad-fraction nan: must be from 0 to 1"),
    (["--max-record-bytes", 0], "--max-record-bytes 0: must be from 1 to"),
    (["--max-record-bytes", -1], "--max-record-bytes -1: must be from 1 to"),
    (["--max-record-bytes", 10**12], "--max-record-bytes 1000000000000: must be from 1 to"),
    (["--max-record-bytes", 5], "1 of 1 records rejected (1 too_long)"),
    (["--json-keys", "text", "text"], "--json-keys: duplicate key"),
    (["--json-keys", "a/b"], "--json-keys: a key is used in file names and must not contain /"),
    (["--json-keys", "a\0b"], "--json-keys"),
    (["--json-keys", "k" * 300], "out"),
    (["--json-keys", "body"], "no key 'body'; available keys: text"),
    (["--output-prefix", "out/"], "--output-prefix out/: must end in a file name"),
    (["--output-prefix", ""], "--output-prefix : must end in a file name"),
    (["--output-prefix", "out/x\0y"], "--output-prefix"),
    (["--output-prefix", "in/a.jsonl/x"], "in/a.jsonl: the output folder cannot be written to"),
    (["--output-prefix", "out/" + "x" * 300], "the output folder cannot be written to: File name too long"),
    (["--output-prefix", "/proc/none/x"], "/proc/none: the output folder cannot be written to"),
    (["--output-prefix", "/dev/null/x"], "/dev/null: the output folder cannot be written to"),
    (["--dataset-name", "a/b"], "--dataset-name: must be a file name without a folder"),
    (["--dataset-name", "a", "--json-keys", "a", "b"], "--dataset-name: not possible with several --json-keys"),
    (["--sub-range", "x"], "argument --sub-range: invalid"),
    (["--sub-range", "1:0"], "--sub-range 1:0: must be A:B"),
    (["--sub-range", "0:5"], "--sub-range 0:5: must be A:B with 0 <= A < B <= --n-subs (1)"),
    (["--sub-range", "0:1", "--drop-duplicates"], "--sub-range: --drop-duplicates needs all documents"),
    (["--format", "csv"], "in: contains no csv files to read"),
    (["--format", "docx"], "argument --format: invalid choice"),
    (["--nsubs", 2], "unrecognized arguments: --nsubs 2"),
    (["--eod-token", "<eod>"], "'<eod>' is not in the vocabulary"),
    (["--input", "in", "missing"], "missing: no such file or folder"),
    (["--filters", "missing.yaml"], "missing.yaml"),
    (["--filters", "in/a.jsonl"], "in/a.jsonl"),
    (["--tokenizer-name-or-path", "missing"], "missing: no such tokenizer folder"),
    (["--tokenizer-name-or-path", "in"], "in: contains no tokenizer.json"),
    (["--tokenizer-name-or-path", "in/a.jsonl"], "in/a.jsonl"),
    (["--tokenizer-type", "SentencePiece"], "--tokenizer-model: needed with --tokenizer-type SentencePiece"),
    (["--tokenizer-type", "SentencePiece", "--tokenizer-model", "in/a.jsonl"], "in/a.jsonl"),
    (["--tokenizer-type", "SentencePiece", "--tokenizer-model", "missing"], "missing"),
    (["--tokenizer-type", "TikToken", "--tokenizer-model", "in/a.jsonl"], "in/a.jsonl: not a tiktoken rank file"),
    (["--tokenizer-type", "TikToken", "--tokenizer-model", "in"], "in"),
    (["--handler-name", "WikiText"], "WikiText: unknown; did you mean WikiTextHandler?"),
    (["--handler-name", ""], "--handler-name : unknown"),
    (["--handler-name", ":"], "--handler-name :: cannot be loaded"),
    (["--handler-name", "no_module:Handler"], "no_module:Handler: cannot be loaded"),
    (["--handler-name", "bad_handlers:Missing"], "bad_handlers:Missing: cannot be loaded"),
    (["--handler-name", "bad_handlers:NoExtract"], "has no method extract(record)"),
    (["--handler-name", "bad_handlers:NOT_A_CLASS"], "has no method extract(record)"),
    (["--handler-name", "bad_handlers:NeedsArguments"], "cannot be created without arguments"),
    (["--handler-name", "bad_handlers:Raises"], "1 handler_error"),
    (["--handler-name", "bad_handlers:RaisesLate"], "1 handler_error"),
    (["--handler-name", "bad_handlers:Nothing"], "no documents in 1 records"),
    (["--handler-name", "bad_handlers:ReturnsNone"], "1 handler_error"),
    (["--handler-name", "bad_handlers:Texts"], "1 wrong_type"),
    (["--handler-name", "bad_handlers:Numbers"], "1 wrong_type"),
    (["--handler-name", "bad_handlers:Long"], "1 too_long"),
]

# Name, content of tokenizer.json.
TOKENIZERS: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("zeros", bytes(100)),
    ("text", b"no json"),
    ("list", b"[]"),
    ("no model", b"{}"),
    ("model is null", b'{"model": null, "added_tokens": null}'),
    ("not utf-8", b'{"model": "\xff"}'),
    ("nested lists", b"[" * 100_000),
    ("nested objects", b'{"a": ' * 100_000 + b"1" + b"}" * 100_000),
    ("vocabulary is a list", b'{"model": {"type": "BPE", "vocab": [1], "merges": []}}'),
]

# Name, path in the output folder, content (None: a folder).
LEFTOVERS: list[tuple[str, str, bytes | None, str]] = [
    ("manifest is text", "x_text_document.manifest.json", b"no json", "an existing dataset differs"),
    ("manifest is a list", "x_text_document.manifest.json", b"[]", "an existing dataset differs"),
    ("manifest is nested", "x_text_document.manifest.json", b"[" * 100_000, "an existing dataset differs"),
    ("manifest is not utf-8", "x_text_document.manifest.json", b"\xff", "an existing dataset differs"),
    ("manifest is a folder", "x_text_document.manifest.json", None, "x_text_document.manifest.json"),
    ("lock is a folder", "x.lock", None, "cannot be written to"),
    ("work is a file", "x.work", b"text", "x.work: cannot be written"),
    ("run file is text", "x.work/run.json", b"no json", "x.work"),
    ("run file is nested", "x.work/run.json", b"[" * 100_000, "x.work"),
    ("run file is a list", "x.work/run.json", b"[]", "x.work"),
    ("run file lacks keys", "x.work/run.json", b"{}", "x.work"),
    ("rejects is a folder", "x.rejects.jsonl/a", None, "x.rejects.jsonl"),
]


@pytest.mark.parametrize(("name", "make", "arguments", "message"), FILES, ids=[case[0] for case in FILES])
def test_files(run: Callable, tmp_path: Path, name: str, make: Make, arguments: Sequence[object], message: str) -> None:
    (tmp_path / "in").mkdir()
    make(tmp_path)
    check_refused(run(*arguments), tmp_path, message)


@pytest.mark.parametrize(
    ("arguments", "message"), SETTINGS, ids=[" ".join(map(str, args))[:60] for args, _ in SETTINGS]
)
def test_settings(run: Callable, tmp_path: Path, arguments: Sequence[object], message: str) -> None:
    write_good(tmp_path)
    (tmp_path / "bad_handlers.py").write_text(HANDLERS)
    check_refused(run(*arguments), tmp_path, message)


@pytest.mark.parametrize(("name", "content"), TOKENIZERS, ids=[case[0] for case in TOKENIZERS])
def test_tokenizers(run: Callable, tmp_path: Path, name: str, content: bytes) -> None:
    write_good(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.json").write_bytes(content)
    check_refused(run("--tokenizer-name-or-path", "tokenizer"), tmp_path, "tokenizer")


@pytest.mark.parametrize(("name", "path", "content", "message"), LEFTOVERS, ids=[case[0] for case in LEFTOVERS])
def test_leftovers_in_the_output_folder(
    run: Callable, tmp_path: Path, name: str, path: str, content: bytes | None, message: str
) -> None:
    write_good(tmp_path)
    target = tmp_path / "out" / path
    target.parent.mkdir(parents=True)
    if content is None:
        target.mkdir()
    else:
        target.write_bytes(content)
    before = sorted((tmp_path / "out").rglob("*"))
    code, errors = run()
    assert code == 2 and "Traceback" not in errors and message in errors.splitlines()[-1], errors[-2000:]
    assert set(before) <= set((tmp_path / "out").rglob("*")), "nothing of others is removed"


def test_long_texts_for_a_reference_library(run: Callable, tmp_path: Path) -> None:
    """They take 200 bytes per byte of text, so the limit is lower, unless it is given."""
    (tmp_path / "in").mkdir()
    lines = [json.dumps({"text": "a b " * number}) + "\n" for number in (10, 800_000)]
    (tmp_path / "in/a.jsonl").write_text("".join(lines))
    check_refused(run("--tokenizer-engine", "reference"), tmp_path, "1 of 2 records rejected (1 too_long)")
    (line,) = (tmp_path / "out/x.rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["detail"] == "for tokenizers; see --max-record-bytes"
    assert run("--tokenizer-engine", "reference", "--max-record-bytes", 4 << 20, "--overwrite")[0] == 0


def test_a_file_name_that_is_not_utf8(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / os.fsdecode(b"in/\xff.jsonl")).write_bytes(GOOD)
    assert run()[0] == 0
    assert "\ufffd.jsonl" in (tmp_path / "out/x_text_document.manifest.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"no json", b"[]", b"{}", b'{"run": 1}', b"[" * 100_000, b"\xff"])
def test_a_damaged_result_is_packed_again(run: Callable, tmp_path: Path, content: bytes) -> None:
    write_good(tmp_path)
    assert run("--n-subs", 2, "--sub-range", "0:1")[0] == 0
    (result,) = (tmp_path / "out/x.work").glob("sub-*/result.json")
    result.write_bytes(content)
    code, errors = run("--n-subs", 2)
    assert code == 0 and "Traceback" not in errors
    assert not (tmp_path / "out/x.work").exists()


def test_there_are_enough_cases() -> None:
    assert sum(map(len, (CONTENTS, INDEXED, FILES, SETTINGS, TOKENIZERS, LEFTOVERS))) >= 200


def test_bad_records_are_skipped_on_request(run: Callable, tmp_path: Path) -> None:
    """With the fraction raised, the bad contents above are packed with a good file beside them."""
    (tmp_path / "in").mkdir()
    bad = [(name, file, content) for name, file, content, message in CONTENTS if "records rejected" in message]
    for number, (_, file, content) in enumerate(bad):
        ending = file.partition(".")[2]
        if ending in ("jsonl", "json", "jsonl.gz"):
            (tmp_path / "in" / f"{number}.{ending}").write_bytes(content)
    write_good(tmp_path, "in/good.jsonl")
    code, errors = run("--max-bad-fraction", 1)
    assert code == 0 and "Traceback" not in errors, errors[-2000:]
    manifest = json.loads((tmp_path / "out/x_text_document.manifest.json").read_text())
    listed = (tmp_path / "out/x.rejects.jsonl").read_text().splitlines()
    assert sum(manifest["rejected"].values()) == len(listed) > 20
    assert not list((tmp_path / "out").glob("*.lock")) and not list((tmp_path / "out").glob("*.work"))
