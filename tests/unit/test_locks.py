"""File systems without locks: one line that names the file and the mount option, and the work goes on."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ascend_cpt.checkpoint.lock import hold_run_folder
from ascend_cpt.data.settings import PreprocessSettings
from ascend_cpt.data.workspace import lock_output
from ascend_cpt.errors import DataError
from ascend_cpt.run.evaluation.watching import hold_watch_lock


def settings(prefix: Path, **changes: object) -> PreprocessSettings:
    values = {"inputs": ("x",), "output_prefix": str(prefix), "tokenizer_path": "t", "seq_length": 1, **changes}
    return PreprocessSettings(**values)  # type: ignore[arg-type]


HOLDERS: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    ".lock": hold_run_folder,
    ".evaluate.lock": hold_watch_lock,
    "x.lock": lambda folder: lock_output(settings(folder / "x")),
}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.parametrize("name", HOLDERS)
def test_no_locks(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    with HOLDERS[name](tmp_path):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert f"warning: {tmp_path / name}: its file system does not support locks ({os.strerror(number)})" in lines[0]
    assert "-o flock" in lines[0] and "localflock" in lines[0] and "nolock" in lines[0]


@pytest.mark.parametrize("name", HOLDERS)
def test_other_errors_are_not_hidden(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    monkeypatch.setattr(fcntl, "lockf", fail)
    with pytest.raises((OSError, DataError), match="Input/output error"):
        with HOLDERS[name](tmp_path):
            pass


def run_in_child(prefix: Path, **changes: object) -> str:
    """Try to lock the output in another process; return the error, empty if there is none."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with lock_output(settings(prefix, **changes)):
                pass
        except DataError as error:
            os.write(write_end, str(error).encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end) as messages:
        return messages.read()


def test_two_prefixes_with_one_dataset_name(tmp_path: Path) -> None:
    with lock_output(settings(tmp_path / "a", dataset_name="data")):
        message = run_in_child(tmp_path / "b", dataset_name="data")
        assert f"{tmp_path / 'data'}: another run is writing this output" in message
        assert not run_in_child(tmp_path / "b", dataset_name="other")
        assert not run_in_child(tmp_path / "b", dataset_name="data", num_shards=2, sub_range=(0, 1)), (
            "writes no dataset"
        )
    with lock_output(settings(tmp_path / "a")):
        assert "a_text_document: another run" in run_in_child(tmp_path / "b", dataset_name="a_text_document")
    assert not run_in_child(tmp_path / "b", dataset_name="data")
    assert not list(tmp_path.iterdir()), "lock files are removed"
