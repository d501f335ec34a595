"""Commands in the cluster guides run, as far as possible without NPUs, and their options exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ascend_cpt.cluster.launch.options import OPTIONS
from ascend_cpt.cluster.launch.schedulers import SCHEDULERS

REPO_ROOT = Path(__file__).resolve().parents[3]
MULTI_NODE = (REPO_ROOT / "docs/multi_node.md").read_text(encoding="utf-8")
TROUBLES = (REPO_ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
MIGRATION = (REPO_ROOT / "docs/migration.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)


def commands_of(text: str) -> list[str]:
    """Return the commands of the bash blocks of a page; a trailing backslash joins lines."""
    joined = "\n".join(BLOCK.findall(text)).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


COMMANDS = sorted({*commands_of(MULTI_NODE), *commands_of(TROUBLES), *commands_of(MIGRATION)})
# Python commands: run directly, or quoted as the command of a launch.
PYTHON_COMMANDS = sorted(
    {line.removeprefix("python ") for line in COMMANDS if line.startswith("python ")}
    | {inner for line in COMMANDS for inner in re.findall(r'"(run_cpt\.py [^"]*)"', line)}
)
PARSE_ONLY = """
import argparse, runpy, sys

parse_args = argparse.ArgumentParser.parse_args

def parse_and_exit(self, *args, **kwargs):
    parse_args(self, *args, **kwargs)
    print("parsed")
    sys.exit(0)

argparse.ArgumentParser.parse_args = parse_and_exit
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Commands that install packages are not launches.
LAUNCHES = [
    line for line in COMMANDS if "scripts/" in line and not line.startswith("srun") and "python_env.sh" not in line
]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "hosts.txt").write_text("node-a\nnode-b\n")
    variables = {"DRY_RUN": "1", "ASCEND_CPT_PYTHON": sys.executable, "MASTER": "10.0.0.1", "RANK": "1"}
    return os.environ | variables


def run(command: str, folder: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = command.replace("scripts/", f"{REPO_ROOT}/scripts/")
    return subprocess.run(
        ["bash", "-c", words], cwd=folder, env=environ, text=True, capture_output=True, timeout=60, check=False
    )


@pytest.mark.parametrize("command", LAUNCHES)
def test_launch_commands_pass_a_dry_run(command: str, tmp_path: Path, environ: dict[str, str]) -> None:
    result = run(command, tmp_path, environ)
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize("num_spares", [0, 1])
def test_the_slurm_command_reads_its_rank_from_srun(tmp_path: Path, environ: dict[str, str], num_spares: int) -> None:
    (line,) = [line for line in COMMANDS if line.startswith("srun") and ("--spare-nodes" in line) == (num_spares > 0)]
    assert "--ntasks-per-node=1" in line
    num_nodes = 2 + num_spares
    assert f"--nodes={num_nodes}" in line
    environ |= {"SLURM_STEP_NUM_NODES": str(num_nodes), "SLURM_STEP_NODELIST": "node-[a-c]", "SLURM_NODEID": "1"}
    result = run(line[line.index("bash") :], tmp_path, environ)
    assert "--worker_num=16" in result.stdout or "--worker_num=8" in result.stdout, result.stderr
    assert "--node_rank=1" in result.stdout
    assert result.stderr.splitlines()[0] == f"started by Slurm: node 1 of {num_nodes}, master node-a:8118"


def accepts(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a script up to the end of its argument parsing: exit code 0 when the parser takes the arguments."""
    return subprocess.run(
        [sys.executable, "-c", PARSE_ONLY, *words],
        cwd=REPO_ROOT,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", PYTHON_COMMANDS)
def test_scripts_take_the_arguments(command: str) -> None:
    result = accepts(shlex.split(command))
    assert result.returncode == 0 and result.stdout == "parsed\n", result.stderr


def test_an_unknown_flag_is_refused() -> None:
    result = accepts(["tools/doctor.py", "--nodes", "2", "--no-such-flag"])
    assert result.returncode == 2 and "--no-such-flag" in result.stderr


def test_configurations_of_commands_exist() -> None:
    names = {name for line in COMMANDS for name in re.findall(r"configs/\S+?\.yaml", line)}
    assert names
    assert all((REPO_ROOT / name).is_file() for name in names)


def test_every_option_and_scheduler_variable_is_documented() -> None:
    for option in OPTIONS:
        assert f"| `{option.name} " in MULTI_NODE
        assert f"`{option.variable}` | {option.default} |" in MULTI_NODE
    assert {sign for scheduler in SCHEDULERS for sign in scheduler.signs} <= set(re.findall(r"`([A-Z_]+)`", MULTI_NODE))
