"""`DRY_RUN=1` refuses what the launch would refuse."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ascend_cpt.cluster.launch.main import main
from ascend_cpt.errors import run_command

COMMAND = "run_cpt.py --config configs/qwen3/cpt_qwen3_tiny.yaml"


def launch(*arguments: str) -> int:
    return run_command(lambda: main([COMMAND, *arguments]))


@pytest.fixture(autouse=True)
def dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRY_RUN", "1")


@pytest.mark.parametrize("master", ["localhost", "127.0.0.1"])
def test_a_loopback_master_of_two_nodes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, master: str
) -> None:
    assert launch("16", "8", master, "8118", "1") == 2
    output = capsys.readouterr()
    assert output.out == "" and f"MASTER_ADDR {master} is a loopback address, but the job has 2 nodes" in output.err
    monkeypatch.setenv("ASCEND_CPT_ALLOW_LOCAL_MASTER", "1")
    assert launch("16", "8", master, "8118", "1") == 0


def test_the_state_of_this_machine_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        assert launch("2", port, "log", "False", "60") == 0
    output = capsys.readouterr()
    assert f"launch would be refused: MASTER_PORT {port} is in use" in output.out + output.err
    assert launch("16", "8", "no-such-host.invalid", "8118", "0") == 0
    output = capsys.readouterr()
    assert "MASTER_ADDR no-such-host.invalid is unknown on this machine" in output.out + output.err


def test_several_nodes_without_a_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ASCEND_CPT_SECRET_FILE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert launch("16", "8", "10.0.0.1", "8118", "1") == 2
    assert "the job has 2 nodes but no secret" in capsys.readouterr().err
    assert launch("16", "8", "10.0.0.1", "8118", "1", "--insecure") == 0
    assert "--worker_num=16" in capsys.readouterr().out
