from __future__ import annotations

import io
from pathlib import Path

import pytest

from ascend_cpt.cluster.launch.arguments import REPO_ROOT, parse_launch
from ascend_cpt.cluster.launch.workers.worker_log import LogFollower, archive_logs, describe_failure, explain_rendezvous

# Formats of log lines of MindSpore 2.9.0 and MindFormers 1.9.0, with made-up texts.
NATIVE = "[WARNING] DISTRIBUTED(7019,7ff680017b80,python):2026-11-21-08:42:53.999.444 [mindspore/x.cc:1] F] text"
PYTHON = "[ERROR] ME(7021:140045877070720,MainProcess):2026-11-21-08:42:53.931.000 [mindspore/x.py:1] text"
MINDFORMERS = "2026-11-21 08:18:14,928 - mindformers/out[mindformers/x.py:65] - INFO - text"
TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "a.py", line 7, in <module>',
    "    f()",
    "    ^^^",
    '  File "b.py", line 2, in f',
    "    raise RuntimeError('bang')",
]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "worker_0.log"


def write(log: Path, *lines: str) -> Path:
    log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return log


def test_follower_hides_framework_records(log: Path) -> None:
    terminal = io.StringIO()
    write(log, "step 1", NATIVE, PYTHON, MINDFORMERS, f"sum {NATIVE}", "", "[1] kept", "2026-11-21 kept")
    LogFollower(log, terminal).pump()
    assert terminal.getvalue() == "step 1\nsum \n\n[1] kept\n2026-11-21 kept\n"


def test_follower_continues_where_it_stopped(log: Path) -> None:
    terminal = io.StringIO()
    follower = LogFollower(log, terminal)
    follower.pump()
    with log.open("wb") as file:
        for piece in (b"first\nsec", "ond é".encode()[:-1], "é".encode()[-1:] + b"\nlast"):
            file.write(piece)
            file.flush()
            follower.pump()
    assert terminal.getvalue() == "first\nsecond é\n"
    follower.pump(at_end=True)
    follower.pump(at_end=True)
    assert terminal.getvalue() == "first\nsecond é\nlast\n"
    assert follower.has_shown("first")
    assert not follower.has_shown("other")


def test_a_user_error_is_described_by_its_error_line(log: Path) -> None:
    write(log, "start", *TRACEBACK, "RuntimeError: caught", "error: x.yaml:3: unknown key", NATIVE)
    assert describe_failure(log) == ["error: x.yaml:3: unknown key"]


def test_an_exception_is_described_with_its_location(log: Path) -> None:
    write(log, *TRACEBACK, "ValueError: caught", "", *TRACEBACK, "RuntimeError: bang", "more", NATIVE, "late line")
    assert describe_failure(log) == ["RuntimeError: bang", "more", '  at File "b.py", line 2, in f']


def test_an_exception_after_an_error_line_is_the_cause(log: Path) -> None:
    write(log, "error: tried once, trying again", *TRACEBACK, "RuntimeError: bang")
    assert describe_failure(log)[0] == "RuntimeError: bang"


def test_the_native_stack_is_dropped(log: Path) -> None:
    write(log, *TRACEBACK, "RuntimeError: bang", "", "-" * 30, "- C++ Call Stack: (x)", "-" * 30, "x.cc:37 F")
    assert describe_failure(log) == ["RuntimeError: bang", '  at File "b.py", line 2, in f']


def test_without_an_exception_the_last_lines_are_returned(log: Path) -> None:
    write(log, *(f"line {number}" for number in range(20)), NATIVE, "")
    assert describe_failure(log) == [f"line {number}" for number in range(10, 20)]
    assert describe_failure(write(log, NATIVE)) == [NATIVE]


def test_a_missing_or_broken_log_is_accepted(log: Path) -> None:
    assert describe_failure(log) == []
    log.write_bytes(b"\xff\xfe binary\n")
    assert len(describe_failure(log)) == 1
    write(log, *TRACEBACK)
    assert describe_failure(log) == TRACEBACK[1:]


def test_rendezvous_failures_are_explained() -> None:
    settings = parse_launch(["run_cpt.py", "4", "2", "10.0.0.1", "8118", "1"], {}, REPO_ROOT)
    line, code = explain_rendezvous(
        ["RuntimeError: Reason: Repeated registration node: 2 to the scheduler."], settings
    ) or ("", 0)
    assert line.startswith("error: NODE_RANK 1 is taken")
    assert code == 2
    lines = ["RuntimeError: Failed to initialize distributed job cluster because"]
    line, code = explain_rendezvous(lines, settings) or ("", 0)
    assert line.startswith("error: the job's 4 workers did not all connect to 10.0.0.1:8118 within 7200 s")
    assert code == 1
    assert explain_rendezvous(["RuntimeError: bang"], settings) is None


def test_earlier_logs_are_numbered_and_other_files_stay(tmp_path: Path) -> None:
    assert archive_logs(tmp_path) is None
    (tmp_path / "keep.txt").touch()
    for launch in ("1", "2"):
        write(tmp_path / "worker_0.log", launch)
        write(tmp_path / "scheduler.log", launch)
        for name in ("stopped_itself", "last_step.activity", "stacks_0.txt"):
            (tmp_path / name).touch()
        assert archive_logs(tmp_path) == tmp_path / f"earlier_{launch}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier_1", "earlier_2", "keep.txt"]
    assert (tmp_path / "earlier_2/worker_0.log").read_text() == "2\n"
