"""Raw text in a configuration is packed once by the training command, and then trained on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import REPOSITORY, read_history, run_command

SLOW_HANDLER = """
import time

class Slow:
    def extract(self, record):
        time.sleep({pause_s})
        yield record
"""

Write = Callable[..., Path]


def train(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Train in one process. Compiling takes minutes on a busy machine."""
    return run_command([sys.executable, "run_cpt.py", "--config", str(config), *arguments], timeout_s=900)


@pytest.fixture
def write(tmp_path: Path, tokenizer: Path, write_config: Callable[..., Path]) -> Write:
    """Return a function that writes a configuration with a source of raw text; arguments are keys of `raw`."""
    lines = [json.dumps({"content": f"the cat sat on the mat number {k} " * 40}) for k in range(200)]
    (tmp_path / "text.dump").write_text("\n".join(lines))
    (tmp_path / "slow_handler.py").write_text(SLOW_HANDLER.format(pause_s=0.2))

    def run(**raw: Any) -> Path:
        keys = {"input": str(tmp_path / "text.dump"), "format": "json", "json_keys": "content", "n_subs": 2}
        source = {"raw": {**keys, "tokenizer": str(tokenizer), **raw}}
        return write_config(sources={"web": source}, validation=None)

    return run


def count_steps(output: Path) -> int:
    return sum(entry[0] == "step" for entry in read_history(output / "run"))


def find_packed(output: Path) -> list[Path]:
    return list((output / "packed").glob("web-*/data_text_document.manifest.json"))


def test_a_dry_run_packs_nothing(tmp_path: Path, write: Write) -> None:
    result = train(write(), "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "raw      web: 1 json file, " in result.stdout
    assert "rows of 64, packing concat: to be packed in " in result.stdout
    assert not (tmp_path / "output/packed").exists()


def test_packing_alone(tmp_path: Path, write: Write, free_ports: list[int]) -> None:
    """Two workers end without training, and the scheduler does not wait for them."""
    config = write()
    form = ["2", str(free_ports[0]), str(tmp_path / "logs"), "False", "300"]
    command = ["bash", "scripts/msrun_launcher.sh", f"run_cpt.py --config {config} --pack-only", *form]
    result = run_command(command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("packed 200 documents") == 1
    assert len(find_packed(tmp_path / "output")) == 1
    assert not (tmp_path / "output/run").exists()
    again = train(config, "--pack-only")
    assert again.returncode == 0, again.stderr
    assert "packed earlier in" in again.stdout
    other = train(config, "--pack-only", "--train_dataset_dir", str(find_packed(tmp_path / "output")[0]))
    assert other.returncode == 2
    assert "--pack-only: no source of" in other.stderr


@pytest.mark.slow
def test_packs_then_trains_and_the_second_start_uses_the_cache(tmp_path: Path, write: Write) -> None:
    config, output = write(), tmp_path / "output"
    first = train(config, "--stop-at-step", "5")
    assert first.returncode == 0, first.stderr
    assert "raw      web: packed 200 documents" in first.stdout
    assert "Mtok/s" in first.stderr
    [manifest] = find_packed(output)
    written_ns = manifest.stat().st_mtime_ns
    again = train(config)
    assert again.returncode == 0, again.stderr
    assert "packed earlier in" in again.stdout and "Mtok/s" not in again.stderr
    assert count_steps(output) == 20
    assert manifest.stat().st_mtime_ns == written_ns
    planned = train(config, "--dry-run")
    assert "packed earlier in" in planned.stdout and "20 steps" in planned.stdout, planned.stdout


@pytest.mark.slow
def test_nothing_half_packed_is_trusted(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is killed while it packs. The same command then packs what is missing and trains."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config, output = write(handler_name="slow_handler:Slow", workers=1), tmp_path / "output"
    command = [sys.executable, "run_cpt.py", "--config", str(config)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, start_new_session=True)
    # The second part has been started, so the first one is finished.
    while not list(output.glob("packed/web-*/data.work/sub-1*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not find_packed(output)
    planned = train(config, "--dry-run")
    assert "to be packed in" in planned.stdout, planned.stdout
    result = train(config)
    assert result.returncode == 0, result.stderr
    assert "1 of 2 shards are already packed and are kept" in result.stderr
    assert "packed 200 documents" in result.stdout
    assert count_steps(output) == 20


@pytest.mark.slow
def test_packing_longer_than_the_cluster_timeout(
    tmp_path: Path, write: Write, free_ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers wait for rank 0, which packs for longer than msrun's scheduler waits for its workers."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = write(handler_name="slow_handler:Slow", workers=1)
    form = ["2", str(free_ports[0]), str(tmp_path / "logs"), "False", "30"]
    result = run_command(["bash", "scripts/msrun_launcher.sh", f"run_cpt.py --config {config}", *form], timeout_s=900)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert result.stdout.count("packed 200 documents") == 1
    assert count_steps(tmp_path / "output") == 20


@pytest.mark.slow
def test_without_shared_storage_each_node_packs(tmp_path: Path, write: Write, free_ports: list[int]) -> None:
    config = write()

    def run_node(rank: int) -> subprocess.CompletedProcess[str]:
        form = ["2", "1", "127.0.0.1", str(free_ports[0]), str(rank), str(tmp_path / f"log{rank}"), "False", "300"]
        command = f"run_cpt.py --config {config} --no-shared-storage --output_dir {tmp_path / f'node{rank}'}"
        env = {"ASCEND_CPT_ALLOW_LOCAL_MASTER": "1", "XDG_CACHE_HOME": str(tmp_path / f"cache{rank}")}
        launcher = ["bash", "scripts/msrun_launcher.sh", command, *form]
        return run_command(launcher, env={**os.environ, **env}, timeout_s=900)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run_node, range(2)))
    for rank, result in enumerate(results):
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        assert "packed 200 documents" in result.stdout
        assert len(find_packed(tmp_path / f"node{rank}")) == 1
    assert count_steps(tmp_path / "node0") == 20
