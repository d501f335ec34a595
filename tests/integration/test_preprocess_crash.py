"""After any interruption, the same command produces the same bytes as an uninterrupted run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.data.packed.manifest import MANIFEST_SUFFIX, check_shards, load_manifest
from ascend_cpt.data.pipeline import preprocess
from ascend_cpt.data.settings import PreprocessSettings

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL = REPOSITORY / "tools" / "preprocess_data.py"
NUM_SUBS = 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """Return a folder with the sample tokenizer, `in.jsonl`, and `expected/`, packed without interruption."""
    folder = tmp_path_factory.mktemp("crash")
    (folder / "sample").symlink_to(sample)
    texts = [json.loads(line)["text"] for line in (folder / "sample" / "general" / "valid.jsonl").open()]
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text[:2000]}) + "\n" for text in texts))
    preprocess(make_settings(folder, folder / "expected" / "x"))
    return folder


def make_settings(corpus: Path, prefix: Path) -> PreprocessSettings:
    return PreprocessSettings(
        inputs=(str(corpus / "in.jsonl"),),
        output_prefix=str(prefix),
        seq_length=32,
        tokenizer_path=str(corpus / "sample" / "tokenizer"),
        num_shards=NUM_SUBS,
    )


def start(corpus: Path, prefix: Path, *arguments: object) -> subprocess.Popen[str]:
    command = ("--input", corpus / "in.jsonl", "--output-prefix", prefix, "--seq-length", 32, "--n-subs", NUM_SUBS)
    command = (*command, "--tokenizer-name-or-path", corpus / "sample" / "tokenizer", "--workers", 2, *arguments)
    return subprocess.Popen(
        [sys.executable, str(TOOL), *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def find_children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def check_equal(corpus: Path, folder: Path) -> None:
    """Check that the folder has the same files as `expected/`."""
    expected = {path.name: path for path in (corpus / "expected").iterdir()}
    assert {path.name for path in folder.iterdir()} == set(expected)
    for name, path in expected.items():
        if name.endswith(MANIFEST_SUFFIX):
            assert load_manifest(folder / name).digest == load_manifest(path).digest
            check_shards(load_manifest(folder / name), checksums=True)
        else:
            assert (folder / name).read_bytes() == path.read_bytes(), name


def kill_often(corpus: Path, folder: Path, num_kills: int, seed: int) -> None:
    """Kill runs or one of their workers at random times; the output of a run that finishes must be correct."""
    chooser = random.Random(seed)
    begin_s = time.monotonic()
    assert start(corpus, folder / "x").wait() == 0
    usual_s = time.monotonic() - begin_s
    while num_kills:
        check_equal(corpus, folder)
        shutil.rmtree(folder)
        while True:
            process = start(corpus, folder / "x")
            workers: list[int] = []
            deadline_s = time.monotonic() + (chooser.uniform(0.1, 1.1) * usual_s if num_kills else 1000)
            while process.poll() is None and time.monotonic() < deadline_s:
                workers = find_children(process.pid) or workers
                time.sleep(0.01)
            if process.poll() is None:
                victim = workers[-1] if workers and chooser.random() < 0.3 else process.pid
                with contextlib.suppress(ProcessLookupError):  # the worker may have exited already
                    os.kill(victim, signal.SIGKILL)
                    num_kills -= 1
            message = process.communicate()[1]
            assert process.returncode in (0, 2, -signal.SIGKILL), message
            assert process.returncode != 2 or "a worker process was killed" in message, message
            assert all(is_dead(worker) for worker in workers)
            if process.returncode == 0:
                break
    check_equal(corpus, folder)


def is_dead(pid: int) -> bool:
    """Return whether the process is dead, waiting shortly for the signal to be delivered."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_random_kills(corpus: Path, tmp_path: Path) -> None:
    kill_often(corpus, tmp_path / "out", num_kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_random_kills(corpus: Path, tmp_path: Path) -> None:
    kill_often(corpus, tmp_path / "out", num_kills=25, seed=2)


class Crash(BaseException):
    """Simulates a kill: not caught by any handler in the tested code."""


def crash_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[str]:
    """Crash before the given call that changes names on disk; return the list of calls so far."""
    calls: list[str] = []

    def count(function: Callable[..., object], name: str) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            if len(calls) == call:
                raise Crash
            calls.append(name)
            return function(*arguments, **options)

        return counted

    for module, name in ((os, "replace"), (shutil, "rmtree"), (Path, "mkdir"), (Path, "unlink")):
        monkeypatch.setattr(module, name, count(getattr(module, name), name))
    return calls


def test_crash_at_each_change_on_disk(corpus: Path, tmp_path: Path) -> None:
    """Each run crashes at its k-th change of a name on disk; the next run must recover."""
    settings = make_settings(corpus, tmp_path / "out" / "x")
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = crash_at(monkeypatch, -1)
        preprocess(settings)
        num_steps = len(calls)
    assert num_steps > 25
    chooser = random.Random(3)
    # All steps at the start and in the commit, and some of the similar ones in between.
    steps = [0, 1, 2, 3, *chooser.sample(range(4, num_steps - 16), 4), *range(num_steps - 16, num_steps, 2)]
    for step in steps:
        shutil.rmtree(tmp_path / "out")
        with pytest.MonkeyPatch.context() as monkeypatch:
            crash_at(monkeypatch, step)
            with pytest.raises(Crash):
                preprocess(settings)
        preprocess(settings)
        for leftover in (tmp_path / "out").glob(".*tmp"):
            leftover.unlink()  # a temporary file of a killed process; harmless
        check_equal(corpus, tmp_path / "out")


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="no file system of its own can be made here",
)
def test_full_disk(corpus: Path, tmp_path: Path) -> None:
    arguments = ["--input", corpus / "in.jsonl", "--output-prefix", tmp_path / "small" / "x", "--seq-length", 32]
    command = [sys.executable, TOOL, *arguments, "--tokenizer-name-or-path", corpus / "sample" / "tokenizer"]
    (tmp_path / "small").mkdir()
    mount = f"mount -t tmpfs -o size=48k none '{tmp_path}/small' && exec \"$@\""
    result = subprocess.run(
        ["unshare", "-rm", "bash", "-c", mount, "bash", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "MindRecord cannot be written: No space left" in result.stderr.splitlines()[-1]
