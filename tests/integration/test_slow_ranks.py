"""A rank that is slowed on purpose is found and named, and a stop request of one rank reaches all of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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


def wait_for(run: Path, fits: Callable[[dict[str, Any]], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a record of slow ranks with a property: for minutes, because 16 measurements are judged together."""
    deadline = time.monotonic() + 600
    while not any(fits(record) for record in read_records(run, "ranks")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.5)


def is_slow(record: dict[str, Any]) -> bool:
    """Return whether rank 1 computes slowly."""
    node = os.uname().nodename
    return any(
        (one["rank"], one["cause"], one["node"]) == (1, "computing", node) and one["excess"] > 0.3
        for one in record["slow"]
    )


@contextlib.contextmanager
def busy_core(process: psutil.Process) -> Iterator[None]:
    """Let other programs with a higher priority use the only core that a process has."""
    threads = [thread.id for thread in process.threads()]
    cores = os.sched_getaffinity(process.pid)
    command = ["taskset", "--cpu-list", str(max(cores)), sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(2)]
    try:
        schedule(process.pid, threads, {max(cores)}, niceness=5)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
        schedule(process.pid, threads, cores, niceness=0)


def schedule(process: int, threads: list[int], cores: set[int], *, niceness: int) -> None:
    """Give threads cores and a priority. Only root can raise a priority."""
    for thread in threads:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.sched_setaffinity(thread, cores)
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
    # Linux may share the cores among sessions first.
    with contextlib.suppress(OSError):
        Path(f"/proc/{process}/autogroup").write_text(str(niceness), encoding="ascii")


@pytest.mark.timeout(1500)
def test_slowed_rank_is_named(packed: Path, tmp_path: Path, free_ports: list[int]) -> None:
    sections = make_sections(
        packed,
        tmp_path / "output",
        run_name="slowed",
        train_tokens=100_000 * 4 * 64,
        global_batch_size=4,
        checkpoint={"every": "100000 steps"},
        validation=None,
        # Above what other processes on the cores of this machine cause.
        monitor={"print_every_steps": 100, "slow_rank_excess": 0.3},
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
        # Undisturbed: at least one judgement.
        wait_for(run, lambda record: record["computing_s"] > 0, launcher)
        worker = find_worker(psutil.Process(launcher.pid), 1)
        assert worker is not None
        before = read_records(run, "ranks")
        assert not [one for record in before for one in record["slow"] if one["cause"] == "computing"], before
        with busy_core(worker):
            wait_for(run, is_slow, launcher)
        steps = read_records(run, "step")[-1]["step"]
        os.kill(worker.pid, signal.SIGTERM)
        output, _ = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert not [record for record in read_records(run, "ranks") for one in record["slow"] if one["rank"] == 0]
    assert "warning: step" in output and "rank 1 (node" in output and "slower than the median rank" in output
    assert launcher.returncode == 143, output
    stopped_at = read_records(run, "step")[-1]["step"]
    assert stopped_at <= steps + 3 * MAX_STEPS, "a stop request waits for the next exchange only"
    for record in read_records(run, "ranks"):
        print({**record, "slow": [(one["rank"], one["cause"], round(one["excess"], 2)) for one in record["slow"]]})
