"""scripts/start_nodes.sh with a fake ssh that runs the command locally in a shell."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
SCRIPT = REPO_ROOT / "scripts" / "start_nodes.sh"

# `ssh -tt -o X -o Y -- HOST COMMAND`. Each host has its own home folder. Calls are recorded.
FAKE_SSH = """\
#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$CALLS"
while [[ "$1" != -- ]]; do shift; done
export FAKE_HOST=$2 HOME="$HOMES/$2"
shift 2
mkdir -p "$HOME"
exec bash -c "$*"
"""
FAKE_LAUNCHER = """\
#!/usr/bin/env bash
printf '%s|' "$FAKE_HOST" "${HCCL_CONNECT_TIMEOUT-}" "$@"; echo
[[ -z "${SHOW_SECRET-}" ]] || { stat -c %a "$ASCEND_CPT_SECRET_FILE"; cat "$ASCEND_CPT_SECRET_FILE"; }
[[ "$*" != *wait* ]] || { trap 'echo stopped; exit 143' TERM; echo ready; sleep 60 & wait; }
[[ "$FAKE_HOST" != "${BAD_HOST-}" ]] || exit 3
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    for path, text in (("bin/ssh", FAKE_SSH), ("a root/scripts/msrun_launcher.sh", FAKE_LAUNCHER)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    (tmp_path / "hosts").write_text("# two nodes\nn0 slots=8\n\n  n1   # the other\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ASCEND_CPT_", "HCCL_"))}
    kept |= {"CALLS": str(tmp_path / "calls"), "HOMES": str(tmp_path / "homes")}
    return kept | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "REMOTE_ROOT": str(tmp_path / "a root")}


def run(tmp_path: Path, environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=tmp_path, env=environ, text=True, capture_output=True, timeout=60, check=False)


def test_every_node_gets_its_rank(tmp_path: Path, environ: dict[str, str]) -> None:
    environ["HCCL_CONNECT_TIMEOUT"] = "1800"
    result = run(tmp_path, environ, "hosts", "run_cpt.py --x 'a b'", "4", "9000", "--max-restarts", "3")
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [
        f"[n{rank}] n{rank}|1800|--max-restarts|3|run_cpt.py --x 'a b'|8|4|n0|9000|{rank}|" for rank in (0, 1)
    ]


def test_dry_run_prints_the_commands(tmp_path: Path, environ: dict[str, str]) -> None:
    environ |= {"DRY_RUN": "1", "ENV_SCRIPT": "/usr/local/Ascend/ascend-toolkit/set_env.sh", "ASCEND_CPT_PYTHON": "/p"}
    result = run(tmp_path, environ, "hosts", "run_cpt.py --config x.yaml")
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    assert [line[:7] for line in lines] == [
        ["ssh", "-tt", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "--"] for _ in range(2)
    ]
    assert [line[7] for line in lines] == ["n0", "n1"]
    remote = lines[1][8]
    assert shlex.split(remote)[:2] == ["cd", environ["REMOTE_ROOT"]]
    assert "&& source /usr/local/Ascend/ascend-toolkit/set_env.sh && exec env ASCEND_CPT_PYTHON=/p " in remote
    assert ' ASCEND_CPT_SECRET_FILE="$HOME"/.config/ascend_cpt/job_8118 bash scripts/msrun_launcher.sh ' in remote
    assert shlex.split(remote)[-6:] == ["run_cpt.py --config x.yaml", "16", "8", "n0", "8118", "1"]


def test_every_node_gets_the_same_new_secret_through_standard_input(tmp_path: Path, environ: dict[str, str]) -> None:
    secrets = []
    for _ in range(2):
        result = run(tmp_path, environ | {"SHOW_SECRET": "1"}, "hosts", "run_cpt.py", "4", "9000")
        assert result.returncode == 0, result.stderr
        shown = [line.split("] ")[1] for line in result.stdout.splitlines() if "|" not in line]
        assert len(shown) == 4 and set(shown[::2]) | set(shown[1::2]) == {"600", max(shown, key=len)}
        secrets.append(max(shown, key=len))
        assert len(secrets[-1]) == 64
    assert secrets[0] != secrets[1]
    assert not any(secret in (tmp_path / "calls").read_text() for secret in secrets), "the secret is on a command line"


def test_a_given_secret_is_distributed(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "mine").write_text("s" * 40)
    environ |= {"SHOW_SECRET": "1", "ASCEND_CPT_SECRET_FILE": str(tmp_path / "mine")}
    result = run(tmp_path, environ, "hosts", "run_cpt.py")
    assert result.stdout.count("s" * 40) == 2
    assert "s" * 40 not in (tmp_path / "calls").read_text()
    (tmp_path / "mine").write_text("short")
    assert "a job secret must have at least 32 characters" in run(tmp_path, environ, "hosts", "run_cpt.py").stderr


def test_without_a_secret_only_on_request(tmp_path: Path, environ: dict[str, str]) -> None:
    result = run(tmp_path, environ, "hosts", "run_cpt.py", "--insecure", "4")
    assert result.returncode == 0, result.stderr
    assert "n1||--insecure|run_cpt.py|8|4|n0|8118|1|" in result.stdout
    assert "SECRET" not in (tmp_path / "calls").read_text()


def test_a_host_cannot_be_an_option_of_ssh(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "bad").write_text("n0\n-oProxyCommand=touch\n")
    result = run(tmp_path, environ, "bad", "run_cpt.py")
    assert result.returncode == 2 and "'-oProxyCommand=touch' is not a host name" in result.stderr
    assert not (tmp_path / "calls").exists()
    assert " -- n1 " in shlex.join(shlex.split(run(tmp_path, environ | {"DRY_RUN": "1"}, "hosts", "x").stdout)) + " "


def test_a_failed_node_is_named(tmp_path: Path, environ: dict[str, str]) -> None:
    result = run(tmp_path, environ | {"BAD_HOST": "n1"}, "hosts", "run_cpt.py")
    assert result.returncode == 3
    assert result.stderr == "node 1 (n1) ended with exit code 3\n"


def test_an_interrupt_stops_all_nodes(tmp_path: Path, environ: dict[str, str]) -> None:
    with (tmp_path / "out.txt").open("w") as output:
        process = subprocess.Popen(
            ["bash", str(SCRIPT), "hosts", "run_cpt.py wait"],
            cwd=tmp_path, env=environ, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    deadline = time.monotonic() + 30
    while (tmp_path / "out.txt").read_text().count("ready") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    text = (tmp_path / "out.txt").read_text()
    assert "stopping all nodes" in text
    assert text.count("ended with exit code 143") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hosts",), "usage: bash scripts/start_nodes.sh HOSTFILE CMD"),
        (("absent", "run_cpt.py"), "absent: no such hostfile"),
        (("empty", "run_cpt.py"), "empty is empty; list one host per line"),
        (("twice", "run_cpt.py"), "twice lists n1 more than once"),
        (("hosts", "run_cpt.py", "x"), "LOCAL_WORKER must be a whole number of at least 1, not 'x'"),
    ],
)
def test_invalid_arguments_are_one_line(
    tmp_path: Path, environ: dict[str, str], arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty").write_text("# no host\n")
    (tmp_path / "twice").write_text("n1\nn2\nn1\n")
    result = run(tmp_path, environ, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stdout == ""


def test_the_last_hosts_are_the_spare_nodes(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "hosts").write_text("n0\nn1\nn2\n")
    for options in (("--spare-nodes", "1"), ("--spare-nodes=1",)):
        result = run(tmp_path, environ, "hosts", "run_cpt.py", "4", "9000", *options)
        assert result.returncode == 0, result.stderr
        given = "|".join(options)
        assert sorted(result.stdout.splitlines()) == [
            f"[n{rank}] n{rank}||{given}|run_cpt.py|8|4|n0|9000|{rank}|" for rank in (0, 1, 2)
        ]
    result = run(tmp_path, environ, "hosts", "run_cpt.py", "4", "9000", "--spare-nodes", "2")
    assert result.returncode == 2
    assert "error: --spare-nodes 2: hosts must list at least two more hosts" in result.stderr
