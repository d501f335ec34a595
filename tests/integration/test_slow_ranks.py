"""A rank that is slowed on purpose is found and named, and a stop request of one rank reaches all of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ascend_cpt.backend.training.ranks.rank_exchange import MAX_STEPS
from tests.integration.conftest import find_worker, make_sections

pytestmark = pytest.mark.slow


def read_records(run: Path, kind: str) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records: list[dict[str, Any]] = []
    for line in lines:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if record["kind"] == kind]


def wait_for(run: Path, kind: str, count: int, limit_s: float, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + limit_s
    while len(read_records(run, kind)) < count:
        assert time.monotonic() < deadline and process.poll() is None, f"{count} records of kind {kind} expected"
        time.sleep(0.2)


@contextlib.contextmanager
def half_speed(process: psutil.Process) -> Iterator[None]:
    """Let a process run only half of the time."""
    is_over = threading.Event()

    def alternate() -> None:
        while not is_over.is_set():
            process.suspend()
            time.sleep(0.002)
            process.resume()
            time.sleep(0.002)

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        process.resume()


def test_slowed_rank_is_named(packed: Path, tmp_path: Path, free_ports: list[int]) -> None:
    sections = make_sections(
        packed,
        tmp_path / "output",
        run_name="slowed",
        train_tokens=100_000 * 4 * 64,
        global_batch_size=4,
        checkpoint={"every": "100000 steps"},
        validation=None,
        monitor={"print_every_steps": 100},
    )
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    run = tmp_path / "output/slowed"
    command = ["bash", "scripts/msrun_launcher.sh", f"run_cpt.py --config {config}", "2", str(free_ports[0])]
    launcher = subprocess.Popen(
        [*command, str(tmp_path / "log"), "False", "300"],
        env={**os.environ, "ASCEND_CPT_PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(run, "ranks", 1, 240, launcher)
        worker = find_worker(psutil.Process(launcher.pid), 1)
        assert worker is not None
        before = len(read_records(run, "ranks"))
        with half_speed(worker):
            wait_for(run, "ranks", before + 3, 240, launcher)
        steps = read_records(run, "step")[-1]["step"]
        os.kill(worker.pid, signal.SIGTERM)
        output, _ = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    # The first window after `before` may have begun before the slowdown.
    for record in read_records(run, "ranks")[before + 1 : before + 3]:
        found = [one for one in record["slow"] if one["cause"] == "computing"]
        assert [one["rank"] for one in found] == [1] and found[0]["excess"] > 0.3, record
        assert found[0]["node"] == os.uname().nodename
    assert "warning: step" in output and "rank 1 (node" in output and "slower than the median rank" in output
    assert launcher.returncode == 143, output
    stopped_at = read_records(run, "step")[-1]["step"]
    assert stopped_at <= steps + 3 * MAX_STEPS, "a stop request waits for the next exchange only"
    for record in read_records(run, "ranks"):
        print({**record, "slow": [(one["rank"], one["cause"], round(one["excess"], 2)) for one in record["slow"]]})
