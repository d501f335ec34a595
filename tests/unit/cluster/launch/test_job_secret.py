"""Where the job secret comes from, and that it goes nowhere else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ascend_cpt.cluster.launch.arguments import REPO_ROOT, parse_launch
from ascend_cpt.cluster.launch.checks.examine import examine_launch
from ascend_cpt.cluster.launch.job_secret import (
    SecretSource,
    find_default_file,
    find_secret,
    hold_channel_key,
    split_secret_options,
)
from ascend_cpt.cluster.launch.main import main
from ascend_cpt.cluster.messages.secret import INSECURE_SECRET, derive_key, read_secret_file
from ascend_cpt.cluster.node.doctor import Level
from ascend_cpt.errors import ClusterError

SECRET = b"0123456789abcdef" * 4
SIX = ["run_cpt.py", "64", "8", "10.0.0.1", "8118", "1"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET + b"\n")
    path.chmod(0o600)
    return path


def test_options_override_the_environment(file: Path) -> None:
    environ = {"ASCEND_CPT_SECRET_FILE": "/theirs"}
    for words in (["--secret-file", str(file), *SIX], [*SIX, f"--secret-file={file}"]):
        assert split_secret_options(words, environ) == (SIX, SecretSource(path=str(file)))
    assert split_secret_options([*SIX, "--insecure"], environ) == (SIX, SecretSource(insecure=True))
    assert split_secret_options(SIX, environ) == (SIX, SecretSource(path="/theirs"))
    assert split_secret_options(SIX, {"ASCEND_CPT_INSECURE": "1"})[1].insecure
    assert parse_launch(SIX, environ, REPO_ROOT).secret_source.path == "/theirs"


@pytest.mark.parametrize(
    ("words", "environ", "message"),
    [
        ((*SIX, "--secret-file"), {}, "--secret-file needs a path"),
        ((*SIX, "--secret-file="), {}, "--secret-file needs a path"),
        ((*SIX, "--secret-file", "x", "--insecure"), {}, "exclude each other"),
        (SIX, {"ASCEND_CPT_INSECURE": "yes"}, "ASCEND_CPT_INSECURE must be 0 or 1, not 'yes'"),
    ],
)
def test_invalid_options_are_one_line(words: list[str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        split_secret_options(words, environ)


def test_one_node_needs_nothing_and_has_a_new_secret_each_time(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    secrets = {find_secret(SecretSource(), environ, num_nodes=1).secret for _ in range(3)}
    assert len(secrets) == 3 and all(len(secret) == 32 for secret in secrets)


def test_several_nodes_need_a_secret(tmp_path: Path, file: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    with pytest.raises(ClusterError, match=r"the job has 8 nodes but no secret.*ascend_cpt/secret on every node"):
        find_secret(SecretSource(), environ, num_nodes=8)
    default = find_default_file(environ)
    assert default == tmp_path / ".config/ascend_cpt/secret"
    default.parent.mkdir(parents=True)
    file.rename(default)
    assert find_secret(SecretSource(), environ, num_nodes=8).secret == SECRET
    assert find_secret(SecretSource(insecure=True), environ, num_nodes=8).secret == INSECURE_SECRET
    assert find_default_file({"XDG_CONFIG_HOME": "/x", "HOME": "/y"}) == Path("/x/ascend_cpt/secret")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_file_that_others_may_read_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ClusterError, match=f"others may read the job secret .mode {mode:04o}.: chmod 600"):
        read_secret_file(file)


def test_unusable_files_are_one_line(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ClusterError, match="cannot be read .No such file"):
        read_secret_file(tmp_path / "absent")
    with pytest.raises(ClusterError, match="must be in a regular file"):
        read_secret_file(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ClusterError, match="must be in a regular file"):
        read_secret_file(tmp_path / "fifo")
    for content in (b"", b"short\n", b"x" * 5000):
        file.write_bytes(content)
        with pytest.raises(ClusterError, match="a job secret must have 32 to 4096 bytes") as caught:
            read_secret_file(file)
        assert "short" not in str(caught.value)


def test_the_secret_from_standard_input() -> None:
    script = (
        "from ascend_cpt.cluster.messages.secret import read_secret_from_input as read\n"
        "import sys; assert read() == read(); sys.stdout.buffer.write(read())"
    )
    run = [sys.executable, "-c", script]
    result = subprocess.run(run, cwd=REPO_ROOT, input=SECRET + b"\nmore", capture_output=True, check=False)
    assert result.stdout == SECRET, result.stderr


def test_workers_get_a_key_from_which_the_secret_does_not_follow(file: Path) -> None:
    secret = find_secret(SecretSource(path=str(file)), {}, num_nodes=2)
    assert SECRET.decode() not in repr(secret)
    with hold_channel_key(secret) as path:
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert read_secret_file(path) == derive_key(SECRET, "workers").hex().encode()
    assert not path.parent.exists()
    assert len({secret.launcher_key, secret.channel_key, SECRET}) == 3


def test_the_launcher_refuses_several_nodes_without_a_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ASCEND_CPT_SECRET_FILE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(ClusterError, match="no secret"):
        main(SIX)
    # The warning comes before the check of the address, which is not one of this machine.
    with pytest.raises(ClusterError, match="MASTER_ADDR 127.0.0.1 is a loopback address"):
        main(["run_cpt.py", "4", "2", "127.0.0.1", "8118", "1", "--insecure"])
    assert "warning: --insecure: anyone who reaches ports 8118 to 8120 of 127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "content", "mode", "level", "text"),
    [
        (("--secret-file", "{file}"), SECRET, 0o600, Level.OK, "can be read only by its owner"),
        ((), None, 0, Level.ERROR, "no secret.*put the same secret into .*on every node"),
        (("--secret-file", "{file}"), None, 0, Level.ERROR, "No such file.*put the job's secret there on every node"),
        (("--secret-file", "{file}"), SECRET, 0o644, Level.ERROR, "others may read the job secret.*: chmod 600 "),
        (("--secret-file", "{file}"), b"", 0o600, Level.ERROR, "must have 32 to 4096 bytes; make one with"),
        (
            ("--secret-file", "{file}"),
            b"short",
            0o600,
            Level.ERROR,
            "must have 32 to 4096 bytes; make one with",
        ),
        (("--secret-file", "-"), None, 0, Level.SKIPPED, "read from standard input"),
        (("--insecure",), None, 0, Level.WARNING, "without a secret.*; drop --insecure"),
    ],
)
def test_the_doctor_checks_the_secret(
    tmp_path: Path, words: tuple[str, ...], content: bytes | None, mode: int, level: Level, text: str
) -> None:
    path = tmp_path / "given"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    settings = parse_launch([*(word.format(file=path) for word in words), *SIX], environ, REPO_ROOT)
    (finding,) = [finding for finding in examine_launch(settings, environ) if finding.check == "secret"]
    assert finding.level is level and re.search(text, str(finding)), str(finding)
    assert SECRET.decode() not in str(finding)


def test_the_doctor_refuses_the_secret_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "given"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if path.stat().st_uid == 0:
        os.chown(path, 23456, -1)
    settings = parse_launch(["--secret-file", str(path), *SIX], {}, REPO_ROOT)
    (finding,) = [finding for finding in examine_launch(settings, {}) if finding.check == "secret"]
    assert finding.level is Level.ERROR and "belongs to another user; use a secret file of your own" in finding.text


def test_the_doctor_of_one_node_does_not_look_for_a_secret() -> None:
    settings = parse_launch(["run_cpt.py", "8", "8", "127.0.0.1", "8118", "0"], {}, REPO_ROOT)
    assert "secret" not in {finding.check for finding in examine_launch(settings, {})}
