"""What a terminal must not get from logs, the network, models and input files."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from ascend_cpt.cluster.launch.terminal import print_status
from ascend_cpt.cluster.launch.workers.worker_log import LogFollower
from ascend_cpt.errors import DataError, run_command
from ascend_cpt.monitor.console import captured_output
from ascend_cpt.terminal_text import strip_controls

HOSTILE = "\x1b]0;title\x07a\x1b[2J\x1b[31mb\x9b1mc\x00\x08\x7fd\u202ee\rf\x1bPq#0\x1b\\g\x1bch"
PLAIN = "abcde fgh"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (HOSTILE, PLAIN),
        ("plain text, ümlaut, 中文, 👩‍💻", "plain text, ümlaut, 中文, 👩‍💻"),
        ("two\nlines\tand a tab\r\n", "two\nlines\tand a tab\n"),
        ("10%\r50%\r100%", "10% 50% 100%"),
        ("\x1b[31", "31"),
        ("\x1b", ""),
        ("\x1b]52;c;" + "A" * 100 + "\nnext line", "\nnext line"),
        ("\x1b[38;5;1mred\x1b[0m", "red"),
    ],
)
def test_controls_are_stripped(text: str, plain: str) -> None:
    assert strip_controls(text) == plain


def test_launcher_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_status(f"{HOSTILE}\nsecond line")
    assert capsys.readouterr().err == f"{PLAIN}\nsecond line\n"

    def fail() -> None:
        raise DataError(HOSTILE)

    assert run_command(fail) == 2
    assert capsys.readouterr().err == f"error: {PLAIN}\n"
    (tmp_path / "worker_0.log").write_text(HOSTILE + "\n", newline="")
    terminal = io.StringIO()
    LogFollower(tmp_path / "worker_0.log", terminal).pump()
    assert terminal.getvalue() == PLAIN + "\n"


def test_console(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The stream that shows progress, samples and scores."""
    with captured_output(tmp_path / "log") as console:
        print(HOSTILE, file=console)
        os.write(1, b"of a library\n")
    assert capfd.readouterr().out == PLAIN + "\n"
    assert (tmp_path / "log").read_text() == "of a library\n"
