"""tools/rehearse.py as a user calls it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ascend_cpt.rehearsal.emulated_job import EmulatedJob, JobFailed
from tests.emulation import needs_emulation
from tests.integration.conftest import REPOSITORY, run_command

CONFIG = "configs/qwen3/cpt_qwen3_0_6b_4k.yaml"


def rehearse(*arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    return run_command([sys.executable, "tools/rehearse.py", *arguments], timeout_s=timeout_s)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@needs_emulation
@pytest.mark.parametrize("name", ["qwen3/cpt_qwen3_8b", "llama3/cpt_llama3_70b", "qwen2/cpt_qwen2_72b_4k"])
def test_shipped_configuration_passes(name: str, tmp_path: Path) -> None:
    result = rehearse(f"configs/{name}.yaml", "--folder", str(tmp_path / "work"), timeout_s=2300)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rehearsal passed" in result.stdout and not (tmp_path / "work").exists()


@needs_emulation
def test_a_job_that_fails_gives_its_last_error(tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text("cpt: {sed: 1}\n")
    job = EmulatedJob(config, tmp_path / "job", workers=1, timeout_s=120)
    job.start()
    with pytest.raises(JobFailed, match=r"error: .*wrong.yaml.*sed.*exit code 2; see .*console_1.txt"):
        job.expect_success()


@needs_emulation
def test_failed_step_is_named_and_everything_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    result = rehearse(CONFIG, "--processes", "2", "--folder", str(folder), "--timeout", "5")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "start, train and save   FAILED" in result.stdout and "after 5 s; see" in result.stdout
    assert "exported weights        not run" in result.stdout
    assert f"data, runs and logs: {folder}" in result.stdout and (folder / "many.yaml").is_file()


@needs_emulation
@pytest.mark.timeout(200)
def test_interrupt_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    command = [sys.executable, "tools/rehearse.py", CONFIG, "--processes", "2", "--folder", str(folder)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 150
    while not list(folder.glob("many/node0/log_1/worker_*.log")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("configs/qwen3/cpt_qwen3_tiny.yaml",), "device_target is CPU; run it directly"),
        (("configs/none.yaml",), "configs/none.yaml"),
        ((CONFIG, "--processes", "0"), "--processes 0: must be above 0"),
        ((CONFIG, "--processes", "1"), "give at least 2"),
        ((CONFIG, "--folder", "."), "--folder .: already exists; choose a new folder"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = rehearse(*arguments)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_missing_compiler_is_the_users_mistake(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "tools/rehearse.py", CONFIG, "--folder", str(tmp_path / "work")]
    result = run_command(command, env=environment)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "error: g++, nm, strings not found: install g++ and binutils" in result.stderr
    assert not (tmp_path / "work").exists()
