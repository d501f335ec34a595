"""Preprocessing on several machines: with --sub-range, and as Ray tasks."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ascend_cpt.data.packed.manifest import load_manifest
from ascend_cpt.data.pipeline import preprocess
from ascend_cpt.data.settings import PreprocessSettings

TOOL = Path(__file__).resolve().parents[2] / "tools" / "preprocess_data.py"
NUM_SUBS = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """Return a folder with the sample tokenizer, `in.jsonl` (4 MB), and `expected/`, packed by one process."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "sample").symlink_to(sample)
    texts = [json.loads(line)["text"] for line in (folder / "sample" / "code" / "train.jsonl").open()]
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    preprocess(
        PreprocessSettings(
            inputs=(str(folder / "in.jsonl"),),
            output_prefix=str(folder / "expected" / "x"),
            seq_length=64,
            tokenizer_path=str(folder / "sample" / "tokenizer"),
            num_shards=NUM_SUBS,
        )
    )
    return folder


def start(corpus: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start the tool in the corpus folder, with relative paths."""
    command = [sys.executable, TOOL, "--input", "in.jsonl", "--seq-length", 64, "--n-subs", NUM_SUBS, "--workers", 1]
    command += ["--tokenizer-name-or-path", "sample/tokenizer", *arguments]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=corpus
    )


def check_equal(corpus: Path, folder: Path) -> None:
    expected, got = load_manifest(corpus / "expected"), load_manifest(folder)
    assert got.digest == expected.digest
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.folder.iterdir()}
    for shard in expected.shards:
        assert (folder / shard.file).read_bytes() == (expected.folder / shard.file).read_bytes()


def test_nodes_pack_their_ranges_and_one_finishes(corpus: Path, tmp_path: Path) -> None:
    prefix = ("--output-prefix", tmp_path / "x")
    nodes = [start(corpus, *prefix, "--sub-range", part) for part in ("0:3", "3:6")]
    for node in nodes:
        message = node.communicate()[1]
        assert node.returncode == 0, message
        assert "when all shards are packed, run the command without --sub-range" in message
    assert not list(tmp_path.glob("x_text*")), "no manifest before all is there"
    last = start(corpus, *prefix)
    message = last.communicate()[1]
    assert last.returncode == 0 and "6 of 6 shards are already packed" in message, message
    check_equal(corpus, tmp_path)


def test_range_in_use_by_another_node_is_refused(corpus: Path, tmp_path: Path) -> None:
    holder = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX, 2, 0)\n"
        "print('held', flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", holder, str(tmp_path / "x.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        prefix = ("--output-prefix", tmp_path / "x")
        runs = {part: start(corpus, *prefix, *part.split()) for part in ("--sub-range 2:3", "--sub-range 1:4", "")}
        messages = {part: run.communicate()[1] for part, run in runs.items()}
        process.kill()
    assert [run.returncode for run in runs.values()] == [0, 2, 2], messages
    assert "another run is writing this output" in messages["--sub-range 1:4"]


@pytest.mark.parametrize("text", ["3:2", "0:7", "5:5"])
def test_invalid_ranges(corpus: Path, tmp_path: Path, text: str) -> None:
    run = start(corpus, "--output-prefix", tmp_path / "x", "--sub-range", text)
    message = run.communicate()[1]
    assert run.returncode == 2 and f"--sub-range {text}: must be A:B" in message


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray(corpus: Path, tmp_path: Path) -> None:
    run = start(corpus, "--output-prefix", tmp_path / "x", "--engine", "ray")
    message = run.communicate()[1]
    assert run.returncode == 2 and "Ray is not installed" in message.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (ensure_env ray)")
def test_ray_cluster_that_loses_a_worker(corpus: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        run = start(corpus, "--output-prefix", tmp_path / "x", "--engine", "ray", "--ray-address", cluster.address)
        killed = 0
        while run.poll() is None and not killed:
            for worker in find_workers():
                os.kill(worker, signal.SIGKILL)
                killed += 1
            time.sleep(0.05)
        message = run.communicate()[1]
        assert run.returncode == 0, message
        assert killed
    finally:
        cluster.shutdown()
    check_equal(corpus, tmp_path)


def find_workers() -> list[int]:
    """Return the process that packs a shard for Ray, if any."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "cmdline").read_bytes().startswith(b"ray::_pack"):
                return [int(folder.name)]
        except OSError:
            continue
    return []
