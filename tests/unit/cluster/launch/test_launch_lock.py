"""The launcher's lock: exclusive, in a private folder, and removed at the end."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ascend_cpt.cluster.launch.arguments import REPO_ROOT, LaunchSettings, parse_launch
from ascend_cpt.cluster.launch.launch_lock import find_runtime_folder, hold_launch_lock
from ascend_cpt.errors import ClusterError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"ascend_cpt_{os.getuid()}"


def make_settings(port: int = 9000, *, num_nodes: int = 1, node_rank: int = 0) -> LaunchSettings:
    arguments = ["run_cpt.py", str(2 * num_nodes), "2", "127.0.0.1", str(port), str(node_rank)]
    return parse_launch(arguments, {}, REPO_ROOT)


def test_the_lock_is_exclusive() -> None:
    settings = make_settings(num_nodes=2, node_rank=1)
    with hold_launch_lock(settings):
        with pytest.raises(ClusterError, match=rf"NODE_RANK 1 of the job at .* is already taken by .*id {os.getpid()}"):
            with hold_launch_lock(settings):
                pass
        with hold_launch_lock(make_settings(num_nodes=2, node_rank=0)):
            pass
    with hold_launch_lock(settings):
        pass


def test_two_jobs_on_one_port_are_refused() -> None:
    with hold_launch_lock(make_settings(9000)):
        with pytest.raises(ClusterError, match="MASTER_PORT 9000 is in use by the launch"):
            with hold_launch_lock(make_settings(9000)):
                pass


def test_nothing_is_left_behind(folder: Path) -> None:
    for port in range(9000, 9010):
        with hold_launch_lock(make_settings(port)):
            assert len(list(folder.iterdir())) == 1
    assert not list(folder.iterdir())
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_file_of_a_killed_launcher_is_removed(tmp_path: Path, folder: Path) -> None:
    code = (
        "import sys, time; from tests.unit.cluster.launch.test_launch_lock import *\n"
        "with hold_launch_lock(make_settings(9001)): print('held', flush=True); time.sleep(60)"
    )
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=REPO_ROOT, env=environ, stdout=subprocess.PIPE)
    assert killed.stdout is not None and killed.stdout.readline() == b"held\n"
    with hold_launch_lock(make_settings(9002)):
        assert len(list(folder.iterdir())) == 2, "the file of a running launcher stays"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with hold_launch_lock(make_settings(9002)):
        assert len(list(folder.iterdir())) == 1


def test_the_runtime_folder_is_used(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    with hold_launch_lock(make_settings()):
        assert len(list((runtime / "ascend_cpt").iterdir())) == 1
    runtime.chmod(0o777)
    assert find_runtime_folder() == folder, "others could replace the files"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert find_runtime_folder() == folder


def test_links_are_not_followed(tmp_path: Path, folder: Path) -> None:
    """Another user can make links in the temporary folder before us."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with hold_launch_lock(make_settings()):
        (path,) = folder.iterdir()
    path.symlink_to(victim)
    with pytest.raises(ClusterError, match="lock file cannot be opened"):
        with hold_launch_lock(make_settings()):
            pass
    assert victim.read_text() == "precious"
    path.unlink()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(ClusterError, match="must be a folder that belongs to you and that no one else can write to"):
        find_runtime_folder()


def test_a_folder_that_others_can_write_to_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)
    with pytest.raises(ClusterError, match="must be a folder that belongs to you"):
        find_runtime_folder()


def test_without_locks_the_launch_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_launch_lock(make_settings(9001)), hold_launch_lock(make_settings(9002)):
        assert len(list(folder.iterdir())) == 2, "no lock: no file is known to be abandoned"
    assert "its file system does not support locks" in capsys.readouterr().err
