"""Notices of real runs arrive at a webhook."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ascend_cpt.cluster.job.webhook import WEBHOOK_FILE
from tests.integration.conftest import find_worker, make_sections, pack_rows, run_command
from tests.receiver import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.close()


@pytest.fixture
def environ(receiver: Receiver, tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "webhook"
    path.write_text(receiver.url, encoding="utf-8")
    path.chmod(0o600)
    return {WEBHOOK_FILE: str(path)}


def write_config(folder: Path, packed: Path, **cpt: Any) -> Path:
    sections = make_sections(packed, folder / "output", **cpt)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    return path


def list_notices(receiver: Receiver) -> list[tuple[str, str]]:
    return [(body["event"], body["text"]) for body in receiver.bodies]


def test_start_alarm_and_end(receiver: Receiver, environ: dict[str, str], packed: Path, tmp_path: Path) -> None:
    # The more of its data the model learns, the worse it predicts random tokens.
    held = pack_rows(tmp_path / "random_text_document", num_rows=4, pads=False, is_random=True)
    config = write_config(
        tmp_path,
        packed,
        train_tokens=60 * 8 * 64,
        schedule={"peak_lr": 1e-2, "final_lr": 1e-2, "warmup_tokens": 512},
        validation={
            "every": "10 steps", "sets": {"held": {"path": str(held), "max_increase": 0.0, "on_increase": "stop"}},
        },
    )  # fmt: skip
    result = run_command([sys.executable, "run_cpt.py", "--config", str(config)], env=environ)
    assert result.returncode == 1, result.stderr
    start, alarm, end = list_notices(receiver)
    assert start[0] == "start" and start[1].startswith("training at step 1; first step after ")
    assert alarm[0] == "alarm" and alarm[1].startswith("validation at step ") and alarm[1].endswith("  ALARM")
    assert end[0] == "end" and end[1].startswith("stopped: ") and "validation set held" in end[1]
    assert {body["job"] for body in receiver.bodies} == {"run"}
    # The address is a secret: it is in no file of the run.
    for path in (tmp_path / "output").rglob("*"):
        assert not path.is_file() or b"secret-token" not in path.read_bytes(), path
    assert "secret-token" not in result.stdout + result.stderr


def test_unusable_address_is_refused_before_the_launch(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("raise SystemExit('started')", encoding="utf-8")
    command = ["bash", "scripts/msrun_launcher.sh", str(tmp_path / "script.py"), "1"]
    result = run_command(command, env={WEBHOOK_FILE: str(tmp_path / "none")})
    assert result.returncode == 2 and "started" not in result.stdout
    assert (
        result.stderr.strip().splitlines()[-1].startswith(f"error: {WEBHOOK_FILE}={tmp_path / 'none'}: cannot be read")
    )


@pytest.mark.slow
def test_restart_is_sent_by_the_launcher(
    receiver: Receiver, environ: dict[str, str], packed: Path, tmp_path: Path, free_ports: list[int]
) -> None:
    config = write_config(
        tmp_path, packed, train_tokens=100 * 8 * 64, checkpoint={"every": "20 steps"}, validation=None
    )
    launcher = subprocess.Popen(
        ["bash", "scripts/msrun_launcher.sh", f"run_cpt.py --config {config}", "2", str(free_ports[0]),
         str(tmp_path / "log"), "False", "300"],
        env={**os.environ, **environ, "ASCEND_CPT_PYTHON": sys.executable, "ASCEND_CPT_MAX_RESTARTS": "2",
             "ASCEND_CPT_RESTART_DELAY_S": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not list((tmp_path / "output/run/checkpoint").glob("*/cpt_state.json")):
            assert time.monotonic() < deadline and launcher.poll() is None
            time.sleep(0.1)
        worker = find_worker(psutil.Process(launcher.pid), 1)
        assert worker is not None
        worker.send_signal(signal.SIGKILL)
        output, _ = launcher.communicate(timeout=200)
    finally:
        launcher.terminate()  # it ends its workers
        launcher.wait(60)
    assert launcher.returncode == 0, output
    events = [event for event, _ in list_notices(receiver)]
    assert events == ["start", "restart", "start", "end"], list_notices(receiver)
    assert "restart 1 of 2 in 1 s" in list_notices(receiver)[1][1]
