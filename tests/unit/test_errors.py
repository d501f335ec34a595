"""Exit of commands: one line for a user error, a traceback for a crash, nothing for a closed pipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]


def run(body: str, tail: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command with `body` as main, optionally piped into `tail`; the exit code is the command's."""
    script = f"import os, sys, errno; from ascend_cpt.errors import DataError, run_command\ndef main():\n    {body}\n"
    script += "sys.exit(run_command(main))"
    line = f'"$0" -c "$1" {tail}; exit "${{PIPESTATUS[0]}}"'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, script], cwd=REPO_ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("body", "code", "stderr"),
    [
        ("print('done')", 0, ""),
        ("return 3", 3, ""),
        ("raise DataError('a.jsonl:3: no text; mend it')", 2, "error: a.jsonl:3: no text; mend it\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ],
)
def test_the_end_of_a_command(body: str, code: int, stderr: str) -> None:
    done = run(body)
    assert (done.returncode, done.stderr) == (code, stderr)


@pytest.mark.parametrize("error", ["ValueError('crash')", "BrokenPipeError(errno.EPIPE, 'crash')"])
def test_a_crash_shows_where(error: str) -> None:
    done = run(f"raise {error}")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "crash" in done.stderr


@pytest.mark.parametrize("num_lines", [1, 100_000])
def test_a_closed_pipe(num_lines: int) -> None:
    done = run(f"os.system('sleep 0.3')\n    for _ in range({num_lines}): print('line')", "| true")
    assert (done.returncode, done.stderr) == (1, "")
