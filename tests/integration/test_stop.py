"""SIGTERM to the launcher: all workers save the same step and end; the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ascend_cpt.resume.locate import find_newest_complete
from tests.integration.conftest import REPOSITORY, SEQ_LENGTH, read_history


def test_sigterm_saves_and_ends(write_config: Callable[..., Path], tmp_path: Path, free_ports: list[int]) -> None:
    config = write_config(train_tokens=20_000 * 8 * SEQ_LENGTH, validation=None)
    command = ["bash", "scripts/msrun_launcher.sh", f"run_cpt.py --config {config}", "2", str(free_ports[0])]
    launcher = subprocess.Popen(
        [*command, str(tmp_path / "log"), "False", "300"],
        cwd=REPOSITORY,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run_dir = tmp_path / "output/run"
    deadline = time.monotonic() + 200
    while not (run_dir / "metrics.jsonl").is_file() or len(read_history(run_dir)) < 3:
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGTERM, output
    newest, passed_over = find_newest_complete(run_dir / "checkpoint")
    assert newest is not None and not passed_over
    assert newest.state.step == read_history(run_dir)[-1][1]
    assert f"stopped by SIGTERM after step {newest.state.step} of 20000; saved in" in output
