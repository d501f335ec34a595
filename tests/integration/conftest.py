"""A small packed dataset and functions to train on it, shared by the tests that train."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from ascend_cpt.data.packed.checksum import checksum_file
from ascend_cpt.data.packed.manifest import Manifest, Shard, manifest_path, write_manifest
from ascend_cpt.data.sample import make_sample
from ascend_cpt.data.tokenizing.files import fingerprint_tokenizer
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from tests.ports import find_free_port

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = REPOSITORY / "tests/reference/tasks"
SEQ_LENGTH, VOCAB_SIZE, EOD_ID, PAD_ID = 64, 512, 0, 511


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the sample corpus and its tokenizer (read-only)."""
    folder = tmp_path_factory.mktemp("sample")
    make_sample(folder)
    return folder


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the prefix of a dataset of 100 rows in two files, each with a padded last row."""
    return pack_rows(tmp_path_factory.mktemp("packed") / "train_text_document", pads=True)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the small tokenizer of the reference tasks, which the packed datasets name as theirs."""
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(TASKS / "tokenizer.json", folder)
    named = {"eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return folder


def pack_rows(
    prefix: Path,
    *,
    num_rows: int = 50,
    seq_length: int = SEQ_LENGTH,
    pads: bool,
    eod_every: int = 0,
    is_random: bool = False,
) -> Path:
    """Write a dataset of two files of `num_rows` rows and return its prefix.

    With `pads` each last row is padded; with `eod_every` a document ends after every so many tokens of a row. With
    `is_random` no token can be predicted from the ones before it.
    """
    from mindspore.mindrecord import FileWriter

    generator = np.random.default_rng(1)
    shards = []
    for index in range(2):
        rows = [
            ((np.arange(seq_length + 1) * generator.integers(1, 7) + generator.integers(500)) % 500).astype(np.int32)
            for _ in range(num_rows)
        ]
        if is_random:
            rows = list(generator.integers(1, 500, (num_rows, seq_length + 1), np.int32))
        for row in rows if eod_every else ():
            row[eod_every - 1 :: eod_every] = EOD_ID
        num_padded = seq_length + 1 - 40 if pads else 0
        rows[-1][seq_length + 1 - num_padded :] = PAD_ID
        path = prefix.with_name(f"{prefix.name}.mindrecord{index}")
        writer = FileWriter(str(path), 1)
        writer.add_schema({"input_ids": {"type": "int32", "shape": [-1]}})
        writer.write_raw_data([{"input_ids": row} for row in rows])
        writer.commit()
        index_path = path.with_name(f"{path.name}.db")
        shards.append(
            Shard(
                file=path.name,
                size_bytes=path.stat().st_size,
                sha256=checksum_file(path),
                index_file=index_path.name,
                index_size_bytes=index_path.stat().st_size,
                index_sha256=checksum_file(index_path),
                num_rows=num_rows,
                num_tokens=num_rows * (seq_length + 1) - num_padded,
                num_documents=num_rows,
                text_bytes=10_000,
                tail_tokens=40 if pads else 0,
            )
        )
    # Of the file in the folder of the fixture `tokenizer`.
    fingerprint = fingerprint_tokenizer(TASKS)
    tokenizer = TokenizerInfo(
        type="PretrainedFromHF",
        name="test",
        fingerprint=fingerprint,
        vocab_size=VOCAB_SIZE,
        eod_id=EOD_ID,
        pad_id=PAD_ID,
    )
    manifest = Manifest(
        key="text", output_format="mindrecord", seq_length=seq_length, tokenizer=tokenizer, shards=tuple(shards)
    )
    write_manifest(manifest, manifest_path(prefix))
    return prefix


@pytest.fixture
def write_config(tmp_path: Path, packed: Path) -> Callable[..., Path]:
    """Return a function that writes a configuration of a 20-step run on `packed`; arguments replace `cpt:` keys."""

    def write(family: str = "qwen3", **changes: Any) -> Path:
        config = make_sections(packed, tmp_path / "output", family, **changes)
        path = tmp_path / f"{family}_{len(list(tmp_path.glob('*.yaml')))}.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    return write


def make_sections(dataset: Path, output_dir: Path, family: str = "qwen3", **changes: Any) -> dict[str, Any]:
    """Return the sections of a 20-step run of a tiny model on the CPU; `changes` replace `cpt:` keys."""
    bases = [REPOSITORY / "configs/base/cpu_tiny.yaml", REPOSITORY / f"configs/base/{family}_tiny.yaml"]
    cpt = {
        "run_name": "run",
        "init_from": "random",
        "seq_length": SEQ_LENGTH,
        "global_batch_size": 8,
        "train_tokens": 20 * 8 * SEQ_LENGTH,
        "schedule": {"peak_lr": 1e-3, "final_lr": 1e-4, "warmup_tokens": "2K"},
        "sources": {"train": {"path": str(dataset)}},
        "validation": {"max_rows": 10, "sets": {"held": {"path": str(dataset)}}},
        "monitor": {"print_every_steps": 1},
        **changes,
    }
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": VOCAB_SIZE}
    return {
        "base_config": [str(base) for base in bases],
        "output_dir": str(output_dir),
        "model": {"model_config": sizes},
        "cpt": cpt,
    }


def run_command(
    command: Sequence[str], *, cwd: Path = REPOSITORY, env: dict[str, str] | None = None, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root with the Python of the tests and capture its output."""
    environment = {**os.environ, "ASCEND_CPT_PYTHON": sys.executable, **(env or {})}
    return subprocess.run(
        list(command), cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def find_worker(process: psutil.Process, rank: int) -> psutil.Process | None:
    """Return the training process with this rank of a launcher; None if there is none (yet).

    Raises:
        psutil.Error: one of the processes is just ending.
    """
    for child in process.children(recursive=True):
        environ = child.environ()
        if environ.get("MS_ROLE") == "MS_WORKER" and environ.get("RANK_ID") == str(rank):
            return child
    return None


@pytest.fixture
def train() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that trains in one process."""

    def run(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command([sys.executable, "run_cpt.py", "--config", str(config), *arguments])

    return run


@pytest.fixture
def launch() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that trains under the launcher."""

    def run(
        config: Path,
        *arguments: str,
        port: int,
        workers: int = 2,
        log_dir: Path,
        env: dict[str, str] | None = None,
        timeout_s: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        command = " ".join(["run_cpt.py", "--config", str(config), *arguments])
        launcher = ["bash", "scripts/msrun_launcher.sh", command, str(workers), str(port), str(log_dir), "False", "300"]
        return run_command(launcher, env=env, timeout_s=timeout_s)

    return run


@pytest.fixture
def launch_nodes() -> Callable[..., list[subprocess.CompletedProcess[str]]]:
    """Return a function that trains on two nodes of one worker each: two concurrent launches on this machine."""

    def run(config: Path, *, port: int, log_dir: Path) -> list[subprocess.CompletedProcess[str]]:
        def run_node(rank: int) -> subprocess.CompletedProcess[str]:
            form = ["2", "1", "127.0.0.1", str(port), str(rank), str(log_dir / str(rank)), "False", "300"]
            command = ["bash", "scripts/msrun_launcher.sh", f"run_cpt.py --config {config}", *form]
            return run_command(command, env={"ASCEND_CPT_ALLOW_LOCAL_MASTER": "1"})

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(run_node, range(2)))

    return run


@pytest.fixture
def free_ports() -> list[int]:
    """Return some free ports."""
    return [find_free_port() for _ in range(6)]


def read_history(run_dir: Path) -> list[tuple[Any, ...]]:
    """Return kind, step, loss, learning rate and gradient norm of every record, which interruptions must not change."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [record for record in records if record["kind"] in ("step", "validation")]
    return [(r["kind"], r["step"], r["loss"], r.get("learning_rate"), r.get("grad_norm")) for r in kept]
