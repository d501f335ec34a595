"""Atomic file writes, and the permissions of the written files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ascend_cpt.files import write_text, write_whole


def test_new_content_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")
    write_text(path, ["né", "w\n"])
    assert path.read_text(encoding="utf-8") == "néw\n"
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_error_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def lines() -> Iterator[str]:
        yield "half"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_text(path, lines())
    with pytest.raises(KeyboardInterrupt), write_whole(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_old_content_remains_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_text(path, "old")
    with write_whole(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"


def test_permissions_follow_the_users_umask(tmp_path: Path) -> None:
    script = "import os, sys; os.umask(0o027); from pathlib import Path; from ascend_cpt.files import write_text; "
    script += "os.umask(0o077); write_text(Path(sys.argv[1]), 'x')"
    path = tmp_path / "a"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, cwd=Path(__file__).resolve().parents[2])
    assert path.stat().st_mode & 0o777 == 0o640
