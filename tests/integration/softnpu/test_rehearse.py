"""tools/rehearse.py as a user types it: rehearsals that pass, one that fails, and mistakes."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import REPOSITORY, make_sections, run_command
from tests.integration.softnpu.layouts import Layout
from tests.integration.test_nodes import seal

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or platform.machine() != "x86_64", reason="the software NPU needs g++ on x86-64"
)
STEPS = ["libraries", "one device", "start", "steps 1-2", "validation", "save", "kill", "resume", "export", "verify",
         "weights"]  # fmt: skip


def rehearse(
    config: Path, folder: Path, *arguments: str, env: dict[str, str] | None = None, timeout_s: float = 240
) -> Any:
    """Run the tool with its temporary folders in `folder`."""
    command = [sys.executable, "tools/rehearse.py", str(config), *arguments]
    return run_command(command, env={"TMPDIR": str(folder), **(env or {})}, timeout_s=timeout_s)


def read_table(output: str) -> dict[str, str]:
    """Return step → result."""
    lines = output[output.index("\nstep ") :].splitlines()
    found = (re.match(r"(\S.*?)  +(passed|failed|skipped|not run)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


@pytest.fixture
def config(tmp_path: Path, packed: Path) -> Path:
    """Return a configuration of a job on four devices, whose data is here and whose weights are not."""
    data = shutil.copytree(packed.parent, tmp_path / "data") / packed.name
    seal(data)
    sections = make_sections(data, tmp_path / "output", init_from="/models/none")
    layout = tmp_path / "layout.yaml"
    layout.write_text(yaml.safe_dump(Layout(data=2, tensor=2, accumulation=2).make_sections()), encoding="utf-8")
    sections["base_config"].append(str(layout))
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    return path


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_with_validation_passes(config: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    result = rehearse(config, tmp_path / "work", "--processes", "2", timeout_s=800)
    assert result.returncode == 0, result.stdout + result.stderr
    assert read_table(result.stdout) == dict.fromkeys(STEPS, "passed")
    assert f"source train: {tmp_path / 'data'}" in result.stdout
    assert "data parallel: 2 -> 1" in result.stdout
    assert not list((tmp_path / "work").iterdir()), "a rehearsal that passed leaves nothing"


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_shipped_configuration_with_stages_passes(tmp_path: Path) -> None:
    path = REPOSITORY / "configs/llama3/cpt_llama3_70b.yaml"
    result = rehearse(path, tmp_path, "--keep", timeout_s=2300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert read_table(result.stdout) == dict.fromkeys(STEPS, "passed") | {"validation": "skipped"}
    assert "not supported with pipeline stages" in result.stdout
    (folder,) = tmp_path.iterdir()
    assert f"kept: {folder}" in result.stdout and (folder / "parallel/exported/config.json").is_file()


@needs_compiler
def test_a_failure_is_shown_and_its_folder_kept(config: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    result = rehearse(config, tmp_path / "work", "--timeout", "1")
    assert result.returncode == 1, result.stdout + result.stderr
    expected = dict.fromkeys(STEPS, "not run") | {"libraries": "passed", "one device": "failed"}
    assert read_table(result.stdout) == expected
    assert "did not end within 1 s; raise --timeout" in result.stdout
    (folder,) = (tmp_path / "work").iterdir()
    assert f"kept: {folder}" in result.stdout
    assert f"log of one device: {folder / 'one_device/launch_1.log'}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "1"], "error: --processes 1: nothing of a layout of 4 devices is left on 1 processes"),
        (["--set", "cpt.sources.train.path=/etc/hostname"], "/etc/hostname: no packed dataset here"),
        (["--set", "cpt.seq_length=63"], "cpt.seq_length"),
    ],
)
def test_mistakes_are_one_line(config: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "work").mkdir()
    result = rehearse(config, tmp_path / "work", *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not list((tmp_path / "work").iterdir())


def test_a_missing_compiler_is_one_line(config: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "tools/rehearse.py", str(config)],
        cwd=REPOSITORY,
        env={**os.environ, **environment, "TMPDIR": str(tmp_path / "work")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert "error: g++, nm, strings not found: install g++ and binutils" in result.stderr
    assert not list((tmp_path / "work").iterdir())
