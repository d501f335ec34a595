"""docs/planning.md: its commands run, its flags exist, its tables match the tests."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[3]
GUIDE = (REPOSITORY / "docs/planning.md").read_text(encoding="utf-8")
COMMANDS = [line for line in GUIDE.splitlines() if line.startswith("python tools/plan.py")]


def run_plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/plan.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", [line for line in COMMANDS if "--compile" not in line])
def test_commands_run(command: str) -> None:
    done = run_plan(*shlex.split(command)[2:])
    assert done.returncode == 0, done.stderr
    assert "fits      yes" in done.stdout or "the given layout is not used" in done.stdout
    if "--suggest" in command:
        assert "configuration of the first:" in done.stdout


def test_flags_of_the_table_and_of_commands_exist() -> None:
    shown = run_plan("--help").stdout
    flags = set(re.findall(r"`(--[a-z-]+)", GUIDE)) | set(re.findall(r"(--[a-z-]+)", " ".join(COMMANDS)))
    assert flags <= set(re.findall(r"--[a-z-]+", shown)), flags
    assert len(flags) >= 12


def test_every_published_figure_is_shown() -> None:
    figures = yaml.safe_load((REPOSITORY / "benchmarks/plan_figures.yaml").read_text(encoding="utf-8"))["figures"]
    for figure in figures:
        name = Path(figure["source"]).stem
        published = f"{figure['tokens_per_device_s']:,}"
        rows = [line for line in GUIDE.splitlines() if f" {name} " in line and f" {figure['device']} " in line]
        assert any(f" {published} " in row and ("| fit |" in row) == figure.get("calibrates", False) for row in rows)


def test_plan_that_does_not_fit_exits_with_1() -> None:
    done = run_plan("configs/qwen3/cpt_qwen3_8b.yaml", "--hbm", "32")
    assert done.returncode == 1 and "fits      NO" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("configs/qwen3/cpt_qwen3_tiny.yaml",), "device_target is CPU, but plans are for Ascend"),
        (("configs/qwen3/cpt_qwen3_8b.yaml", "--hbm", "nan"), "--hbm nan: must be a number above 0"),
        (("configs/qwen3/cpt_qwen3_8b.yaml", "--interleave"), "--interleave: needs --suggest"),
    ],
)
def test_obvious_mistakes_exit_with_2(arguments: tuple[str, ...], words: str) -> None:
    done = run_plan(*arguments)
    assert done.returncode == 2 and words in done.stderr


def test_wrong_configuration_exits_with_2_and_one_line() -> None:
    done = run_plan("configs/qwen3/cpt_qwen3_8b.yaml", "--nodes", "3")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
