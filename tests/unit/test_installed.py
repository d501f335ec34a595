"""Without an environment every script and tool ends with one line that names what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = [*sorted(REPO_ROOT.glob("tools/*.py")), REPO_ROOT / "run_cpt.py"]
SCRIPTS = [REPO_ROOT / name for name in ("data_convert_qwen3_pretrain.sh", "scripts/prepare_sample.sh")]


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """Return a Python without site-packages."""
    path = tmp_path / "bare python"
    path.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" -S "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def check(command: list[str], **variables: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in ("ASCEND_CPT_PYTHON", "PYTHONPATH")}
    result = subprocess.run(
        command, env=inherited | variables, text=True, capture_output=True, check=False, cwd=REPO_ROOT
    )
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ") and " lacks " in result.stderr
    assert "bash scripts/quickstart.sh" in result.stderr and "ASCEND_CPT_PYTHON" in result.stderr


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_program(bare_python: Path, program: Path) -> None:
    check([str(bare_python), str(program), "--config", "x.yaml"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script(bare_python: Path, script: Path) -> None:
    check(["bash", str(script)], ASCEND_CPT_PYTHON=str(bare_python))


def test_launcher(bare_python: Path) -> None:
    launcher = str(REPO_ROOT / "scripts/msrun_launcher.sh")
    check(["bash", launcher, "run_cpt.py --config x.yaml", "2"], ASCEND_CPT_PYTHON=str(bare_python))


def test_a_module_that_is_missing_later(tmp_path: Path) -> None:
    code = (
        "import sys; from ascend_cpt.errors import run_command\ndef f(): import absent.part\nsys.exit(run_command(f))"
    )
    check([sys.executable, "-c", code], PYTHONPATH=str(REPO_ROOT))


def test_an_old_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ascend_cpt import installed

    monkeypatch.setattr(installed, "MIN_VERSION", (9, 0))
    with pytest.raises(SystemExit, match="2"):
        installed.require()
    assert " but 3.10 or 3.11 is needed; run bash scripts/quickstart.sh" in capsys.readouterr().err
