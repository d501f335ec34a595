from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ascend_cpt.cluster.launch.arguments import REPO_ROOT, LaunchSettings, parse_launch
from ascend_cpt.cluster.launch.checks.preflight import ALLOW_LOCAL_MASTER, check_master
from ascend_cpt.cluster.launch.workers import worker_entry
from ascend_cpt.errors import ClusterError


def make_settings(port: int, *, address: str = "127.0.0.1", num_nodes: int = 1, node_rank: int = 0) -> LaunchSettings:
    arguments = ["run_cpt.py", str(2 * num_nodes), "2", address, str(port), str(node_rank)]
    return parse_launch(arguments, {}, REPO_ROOT)


def test_a_free_port_is_accepted(free_port: int) -> None:
    check_master(make_settings(free_port), {})


def test_a_port_in_use_is_refused_on_node_0_only(free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        with pytest.raises(ClusterError, match=f"MASTER_PORT {free_port} is in use on 127.0.0.1"):
            check_master(make_settings(free_port), {})
        check_master(make_settings(free_port, num_nodes=2, node_rank=1), {ALLOW_LOCAL_MASTER: "1"})


def test_a_single_worker_needs_no_port(free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        check_master(parse_launch(["run_cpt.py", "1"], {"MASTER_PORT": str(free_port)}, REPO_ROOT), {})


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "127.0.1.1", "::1"])
@pytest.mark.parametrize("node_rank", [0, 1])
def test_a_local_master_of_several_nodes_is_refused(free_port: int, address: str, node_rank: int) -> None:
    with pytest.raises(ClusterError, match=f"MASTER_ADDR {address} is a loopback address.*{ALLOW_LOCAL_MASTER}=1"):
        check_master(make_settings(free_port, address=address, num_nodes=2, node_rank=node_rank), {})


def test_several_nodes_on_one_machine_can_be_allowed(free_port: int) -> None:
    check_master(make_settings(free_port, num_nodes=2), {ALLOW_LOCAL_MASTER: "1"})


def test_node_0_must_be_the_master(free_port: int) -> None:
    # TEST-NET-1 (RFC 5737) is never assigned.
    with pytest.raises(ClusterError, match="MASTER_ADDR 192.0.2.1 is not an address of this machine"):
        check_master(make_settings(free_port, address="192.0.2.1", num_nodes=2), {})
    check_master(make_settings(free_port, address="192.0.2.1", num_nodes=2, node_rank=1), {})


def test_an_unknown_host_is_refused(free_port: int) -> None:
    with pytest.raises(ClusterError, match="MASTER_ADDR no-such-host.invalid is unknown"):
        check_master(make_settings(free_port, address="no-such-host.invalid", num_nodes=2), {})


def test_checks_do_not_import_mindspore() -> None:
    code = (
        "import sys, ascend_cpt.cluster.launch.main; "
        "sys.exit(any(name.split('.')[0] in {'mindspore', 'mindformers', 'numpy'} for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, check=False).returncode == 0


def test_a_worker_whose_launcher_is_gone_ends_at_once(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", ""])
    launcher.wait()
    (tmp_path / "script.py").write_text("import time; time.sleep(60)")
    environ = {
        worker_entry.LAUNCHER_PID: str(launcher.pid),
        worker_entry.NODE_RANK: "0",
        worker_entry.WORKER_PYTHON: sys.executable,
    }
    command = [sys.executable, worker_entry.__file__, str(tmp_path / "script.py")]
    assert subprocess.run(command, env=environ, check=False, timeout=5).returncode == -signal.SIGKILL
