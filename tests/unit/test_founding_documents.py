"""The commands of docs/founding_documents.md run and print what the page says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import TrainCommand, train_command  # noqa: F401

REPO_ROOT = Path(__file__).resolve().parents[2]
PAGE = (REPO_ROOT / "docs/founding_documents.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| the document"))
]
TRAIN = "python run_cpt.py "


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with the programs of the repository and a small corpus."""
    for name in ("ascend_cpt", "configs", "run_cpt.py", "scripts", "tools"):
        (tmp_path / name).symlink_to(REPO_ROOT / name)
    (tmp_path / "corpus").mkdir()
    record = '{"text": "one two", "input": "three", "output": "four"}\n'
    (tmp_path / "corpus/a.jsonl").write_text(2 * record, encoding="utf-8")
    (tmp_path / "model").mkdir()
    shutil.copy(REPO_ROOT / "tests/reference/tasks/tokenizer.json", tmp_path / "model")
    (tmp_path / "model/tokenizer_config.json").write_text('{"eos_token": "<unk>"}', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_output(expected: str, code: int, text: str) -> None:
    """Compare with the last cell of a row."""
    assert code == (2 if expected.startswith("exit 2") else 0), text
    position = 0
    parts = re.findall(r"`([^`]+)`", expected)
    assert parts
    for part in parts:
        found = text.find(part, position)
        assert found >= 0, f"{part!r} is not in:\n{text[position:]}"
        position = found + len(part)


def is_slow(command: str, expected: str) -> bool:
    return command.startswith("`python tools/preprocess_data.py") and not expected.startswith("exit 2")


PARAMETERS = [
    pytest.param(*row, id=row[0][:40], marks=[pytest.mark.slow] if is_slow(row[1], row[2]) else []) for row in ROWS
]


@pytest.mark.parametrize(("says", "command", "expected"), PARAMETERS)
def test_row(
    folder: Path,
    train_command: TrainCommand,  # noqa: F811
    says: str,
    command: str,
    expected: str,
) -> None:
    command = command.strip("`")
    if command.startswith(TRAIN):
        # A file in place of the output folder, so that no picture is drawn.
        (folder / "output").touch()
        code, out, err = train_command.run(*shlex.split(command.removeprefix(TRAIN)))
        check_output(expected, code, out + err)
        return
    search_path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = os.environ | {"PATH": search_path, "ASCEND_CPT_PYTHON": sys.executable}
    result = subprocess.run(["bash", "-c", command], env=environ, text=True, capture_output=True, check=False)
    check_output(expected, result.returncode, result.stdout + result.stderr)


def test_every_document_has_rows() -> None:
    assert len(ROWS) >= 30 and all(len(row) == 3 for row in ROWS)
    for name in ("PAI", "MindFormers", "MindSpeed-LLM", "NVIDIA", "FAQ"):
        assert re.search(rf"^## .*{name}", PAGE, re.MULTILINE)
