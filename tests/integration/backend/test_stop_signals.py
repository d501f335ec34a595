"""SIGTERM to one of two ranks under the launcher stops both after the same step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

REPO_ROOT = Path(__file__).resolve().parents[3]

STEPPER = """\
import os, sys, time
from pathlib import Path
sys.path.insert(0, os.environ["STEPPER_ROOT"])
from ascend_cpt.backend.training.msrun_scheduler import is_scheduler, serve_workers
if is_scheduler():
    serve_workers()
    sys.exit(0)
import mindspore as ms
from mindspore.communication import get_group_size, get_rank, init
from ascend_cpt.backend.training import stop_signals
from ascend_cpt.backend.training.ranks.rank_exchange import RankExchange
from ascend_cpt.cluster.job.launcher_files import run_worker

def main():
    ms.set_device("CPU")
    init()
    ms.set_auto_parallel_context(parallel_mode="data_parallel")
    stop_signals.install(sys.stdout)
    exchange = RankExchange(get_rank(), get_group_size())
    for step in range(1, 10_000):
        Path(f"at_{get_rank()}").write_text(f"{os.getpid()} {step}")
        time.sleep(0.02 * get_rank())
        if not exchange.is_due(step):
            continue
        found = exchange.exchange(step, is_stop_requested=False, step_s=0.02, data_wait_s=0.0).signal
        if found:
            raise stop_signals.StoppedBySignal(f"stopped by {found.name} after step {step}", found)

sys.exit(run_worker(main))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(sys.executable).parent / "msrun").exists(), reason="msrun is not installed with this Python"
)
@pytest.mark.parametrize("via", ["worker", "launcher"])
def test_all_ranks_stop_after_the_same_step(
    tmp_path: Path, clean_environ: dict[str, str], free_port: int, via: str
) -> None:
    (tmp_path / "stepper.py").write_text(STEPPER)
    environ = clean_environ | {
        "ASCEND_CPT_PYTHON": sys.executable,
        "MASTER_PORT": str(free_port),
        "STEPPER_ROOT": str(REPO_ROOT),
        "ASCEND_CPT_MAX_RESTARTS": "3",
    }
    with (tmp_path / "out.txt").open("w") as output:
        process = subprocess.Popen(
            ["bash", str(REPO_ROOT / "scripts/msrun_launcher.sh"), "stepper.py", "2"],
            cwd=tmp_path, env=environ, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    at = tmp_path / "at_1"
    deadline = time.monotonic() + 200
    while not at.exists() or int((at.read_text() or "0 0").split()[1]) < 5:
        assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "out.txt").read_text()
        time.sleep(0.1)
    if via == "launcher":
        process.send_signal(signal.SIGTERM)
    else:
        os.kill(psutil.Process(int(at.read_text().split()[0])).pid, signal.SIGTERM)
    assert process.wait(60) == 143
    logs = [(tmp_path / f"output/msrun_log/worker_{rank}.log").read_text() for rank in (0, 1)]
    lines = [[line for line in log.splitlines() if line.startswith("error: stopped by SIGTERM")] for log in logs]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 1
    assert "restart" not in (tmp_path / "out.txt").read_text()
