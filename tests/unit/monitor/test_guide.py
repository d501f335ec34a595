"""The commands and settings of docs/monitoring.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from ascend_cpt.config.loader import load_config
from tests.unit.monitor.report.test_report import write_run

# Files of a run folder in the order of the guide's table, and the modules that contain their names.
WRITERS = {
    "metrics.jsonl": "monitor/history.py",
    "timeline.jsonl": "monitor/goodput/timeline.py",
    "evaluations.jsonl": "monitor/history.py",
    "tensorboard/": "monitor/trackers.py",
    "best": "checkpoint/locate.py",
    "export.json": "run/export/target.py",
    "run.json": "monitor/history.py",
    "report.html": "monitor/report/write_report.py",
    "stopped_at_step_N.json": "backend/training/spike_guards.py",
}


def read_blocks(repo_root: Path) -> list[str]:
    """Return the indented blocks of the guide."""
    guide = (repo_root / "docs/monitoring.md").read_text(encoding="utf-8")
    return [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n)+", guide, re.MULTILINE)]


def test_commands_run(repo_root: Path, tmp_path: Path) -> None:
    for name in ("qwen3_tiny_base", "qwen3_tiny"):
        write_run(tmp_path / "output" / name)
    commands = [line for block in read_blocks(repo_root) for line in block.splitlines() if line.startswith("python ")]
    assert len(commands) == 6
    for command in commands:
        program, *arguments = command.split()[1:]
        # The benchmark trains, and a server does not end by itself; here only their arguments are checked.
        extra = ["--help"] if program.startswith("benchmarks") or "--serve" in arguments else []
        result = subprocess.run(
            [sys.executable, str(repo_root / program), *arguments, *extra],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, (command, result.stderr)
    assert (tmp_path / "both.html").is_file() and (tmp_path / "output/qwen3_tiny/report.html").is_file()


def test_settings_are_known(repo_root: Path, tmp_path: Path) -> None:
    blocks = [block for block in read_blocks(repo_root) if block.startswith("cpt:")]
    assert len(blocks) == 3
    for block in blocks:
        content = yaml.safe_load(block)
        content["cpt"] |= {"seq_length": 8, "global_batch_size": 1}
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        load_config(path)


def literals_of(path: Path) -> set[str]:
    """Return the string literals of a source file without docstrings; N stands for an f-string placeholder."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.add("".join(str(part.value) if isinstance(part, ast.Constant) else "N" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            found.add(node.value)
    return found


def test_the_table_of_files_is_complete(repo_root: Path) -> None:
    guide = (repo_root / "docs/monitoring.md").read_text(encoding="utf-8")
    table = guide[: guide.index("## ")]
    assert re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE) == list(WRITERS)


@pytest.mark.parametrize("name", WRITERS)
def test_files_have_these_names(repo_root: Path, name: str) -> None:
    assert name.rstrip("/") in literals_of(repo_root / "ascend_cpt" / WRITERS[name])
