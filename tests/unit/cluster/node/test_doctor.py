from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ascend_cpt.cluster.launch.arguments import REPO_ROOT, parse_launch
from ascend_cpt.cluster.launch.checks import examine as examine_module
from ascend_cpt.cluster.launch.checks.examine import examine_before_launch, examine_launch
from ascend_cpt.cluster.launch.checks.preflight import find_stale_workers, name_listener
from ascend_cpt.cluster.node import doctor
from ascend_cpt.cluster.node.doctor import Finding, Level, Node, examine
from ascend_cpt.cluster.node.npu_tools import Chip, NpuProcess, Status
from ascend_cpt.cluster.node.packages import PackageProblem
from ascend_cpt.errors import ClusterError

TOOLKIT = "version=8.5.0\ncompatible_version=[V100R001C19],[V100R001C23]\n"
DRIVER = "Version=25.3.rc1\nInnerversion=V100R001C23SPC002B212\n"
CHIPS = tuple(
    Chip(card=card, number=0, name="910B2", health="OK", used_hbm_mb=3400, total_hbm_mb=65536) for card in range(8)
)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node of eight NPUs without problems."""
    files = {
        "cann/x/ascend_toolkit_install.info": TOOLKIT,
        "usr/local/Ascend/driver/version.info": DRIVER,
        "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
        "proc/sys/net/ipv4/ip_local_reserved_ports": "50000,60000-60031\n",
        **{f"dev/davinci{number}": "" for number in range(8)},
        "dev/davinci_manager": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return Node(
        environ={"ASCEND_HOME_PATH": str(tmp_path / "cann"), "ASCEND_OPP_PATH": "/o", "LD_LIBRARY_PATH": "/l"},
        num_nodes=2,
        output_dir=tmp_path / "output/run",
        disk_gb=0,
        root=tmp_path,
        query_npus=lambda limit_s: Status(version="25.3", chips=CHIPS, processes=()),
    )


def findings_of(check: Callable[[Node], Any], node: Node) -> list[Finding]:
    return list(check(node))


def test_a_good_node_has_only_ok_findings(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_problems", lambda pins: [])
    monkeypatch.setattr(doctor, "MIN_MEMORY_PER_NPU_GB", 0)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.1")
    findings = [finding for finding in examine(node) if finding.check not in ("shared memory", "open files")]
    assert {finding.level for finding in findings} == {Level.OK}, findings
    assert {"python", "packages", "cann", "driver", "npus", "hccl", "hostname", "disk", "memory"} == {
        finding.check for finding in findings
    }


def test_without_npus_the_npu_checks_are_skipped(node: Node, tmp_path: Path) -> None:
    bare = replace(node, root=tmp_path / "bare")
    skipped = [finding.check for finding in examine(bare) if finding.level is Level.SKIPPED]
    assert skipped == ["cann", "npus", "hccl"]


@pytest.mark.parametrize(("version", "level"), [((3, 9), Level.ERROR), ((3, 11), Level.OK), ((3, 12), Level.ERROR)])
def test_python(node: Node, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], level: Level) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    assert findings_of(doctor.check_python, node)[0].level is level


def test_missing_packages_and_other_versions(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [PackageProblem(name="mindspore", expected="2.9.0", found=None)]
    problems += [PackageProblem(name="mindformers", expected="1.9.0", found="1.8.0")]
    monkeypatch.setattr(doctor, "find_problems", lambda pins: problems)
    found = findings_of(doctor.check_python, node)[1:]
    assert [finding.level for finding in found] == [Level.ERROR, Level.WARNING]
    assert "-m pip install mindspore==2.9.0" in found[0].fix


@pytest.mark.parametrize(
    ("change", "level", "text"),
    [
        ("unset", Level.ERROR, "ASCEND_HOME_PATH is not set"),
        ("empty", Level.WARNING, "no version file"),
        ("old", Level.ERROR, "7.0.RC1"),
        ("half", Level.ERROR, "ASCEND_OPP_PATH not set"),
        ("no driver", Level.ERROR, "driver/version.info is missing"),
        ("other driver", Level.WARNING, "(V100R001C11SPC001) is not listed as compatible by CANN 8.5.0"),
        ("driver without inner version", Level.SKIPPED, "is not stated in their version files"),
    ],
)
def test_cann_and_driver(node: Node, tmp_path: Path, change: str, level: Level, text: str) -> None:
    toolkit, driver = tmp_path / "cann/x/ascend_toolkit_install.info", tmp_path / "usr/local/Ascend/driver/version.info"
    environ = dict(node.environ)
    if change == "unset":
        del environ["ASCEND_HOME_PATH"]
    elif change == "half":
        del environ["ASCEND_OPP_PATH"]
    elif change == "empty":
        toolkit.unlink()
    elif change == "old":
        toolkit.write_text("version=7.0.RC1\n")
    elif change == "no driver":
        driver.unlink()
    elif change == "other driver":
        driver.write_text("Version=22\nInnerversion=V100R001C11SPC001\n")
    else:
        driver.write_text("Version=22\n")
    found = [f for f in doctor.check_cann(replace(node, environ=environ)) if f.level is level]
    assert text in found[0].text
    assert found[0].fix or level is Level.SKIPPED


def status_with(chip: Chip = CHIPS[0], *processes: NpuProcess) -> Status:
    return Status(version="25.3", chips=(chip, *CHIPS[1:]), processes=processes)


@pytest.mark.parametrize(
    ("status", "level", "text"),
    [
        (status_with(replace(CHIPS[0], health="Alarm")), Level.ERROR, "NPU 0 chip 0 (910B2): health Alarm"),
        (
            status_with(CHIPS[0], NpuProcess(card=3, number=0, pid=77, name="python", memory_mb=999)),
            Level.WARNING,
            "NPU 3 chip 0 (910B2) is used by process 77 (python, 999 MB)",
        ),
        (
            status_with(replace(CHIPS[0], used_hbm_mb=30000)),
            Level.WARNING,
            "30000 MB of 65536 MB in use, but by no visible",
        ),
    ],
)
def test_unhealthy_or_occupied_npus(node: Node, status: Status, level: Level, text: str) -> None:
    found = findings_of(doctor.check_npus, replace(node, query_npus=lambda limit_s: status))
    assert [finding.level for finding in found] == [level]
    assert text in found[0].text


def test_too_few_npus(node: Node) -> None:
    found = findings_of(doctor.check_npus, replace(node, num_local_workers=16))
    assert found[0].level is Level.ERROR
    assert "8 according to /dev/davinci*, but 16 workers" in found[0].text
    environ = {**node.environ, "ASCEND_RT_VISIBLE_DEVICES": "0,1"}
    assert (
        "2 according to ASCEND_RT_VISIBLE_DEVICES"
        in findings_of(doctor.check_npus, replace(node, environ=environ))[0].text
    )


def test_npu_smi_that_does_not_answer(node: Node) -> None:
    def ask(limit_s: float) -> Status:
        raise TimeoutError(f"npu-smi info did not answer within {limit_s:g} s")

    found = findings_of(doctor.check_npus, replace(node, query_npus=ask))
    assert [(finding.level, finding.text) for finding in found] == [
        (Level.WARNING, "npu-smi info did not answer within 10 s")
    ]


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        ("HCCL_CONNECT_TIMEOUT", "120", Level.WARNING),
        ("HCCL_CONNECT_TIMEOUT", "x", Level.ERROR),
        ("HCCL_CONNECT_TIMEOUT", "7201", Level.ERROR),
        ("HCCL_CONNECT_TIMEOUT", "1800", Level.OK),
        ("HCCL_EXEC_TIMEOUT", "60", Level.WARNING),
        ("HCCL_EXEC_TIMEOUT", "0", Level.OK),
        ("HCCL_IF_BASE_PORT", "50000", Level.WARNING),
        ("HCCL_IF_BASE_PORT", "20000", Level.OK),
    ],
)
def test_hccl(node: Node, name: str, value: str, level: Level) -> None:
    found = findings_of(doctor.check_hccl, replace(node, environ={**node.environ, name: value}))
    assert {finding.level for finding in found} - {Level.OK} == {level} - {Level.OK}


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, "1800 s, set by the launcher"), ("", "1800 s, set by"), ("900", "900 s")]
)
def test_the_connect_timeout_that_will_hold_is_named(node: Node, value: str | None, seconds: str) -> None:
    environ = dict(node.environ) if value is None else {**node.environ, "HCCL_CONNECT_TIMEOUT": value}
    found = findings_of(doctor.check_hccl, replace(node, environ=environ))
    assert [finding.level for finding in found] == [Level.OK]
    assert f"HCCL_CONNECT_TIMEOUT is {seconds}" in found[0].text


def test_hccl_ports_that_are_not_reserved(node: Node, tmp_path: Path) -> None:
    (tmp_path / "proc/sys/net/ipv4/ip_local_reserved_ports").write_text("60000-60015\n")
    _, finding = findings_of(doctor.check_hccl, node)
    assert finding.fix.startswith("sysctl -w net.ipv4.ip_local_reserved_ports=60000-60031")


def test_host_names(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    (finding,) = findings_of(doctor.check_hostname, node)
    assert "loopback address" in finding.text

    def fail(name: str) -> str:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", fail)
    assert "cannot be resolved" in findings_of(doctor.check_hostname, node)[0].text


def test_resources(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_MEMORY_PER_NPU_GB", 10**6)
    monkeypatch.setattr(doctor, "MIN_SHARED_MEMORY_GB", 10**9)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 8192))
    (node.root / "dev/shm").mkdir()
    found = {finding.check: finding for finding in doctor.check_resources(replace(node, disk_gb=1e9))}
    assert {check: finding.level for check, finding in found.items()} == {
        "disk": Level.ERROR,
        "memory": Level.WARNING,
        "shared memory": Level.WARNING,
        "open files": Level.WARNING,
    }
    assert found["open files"].fix == "ulimit -n 8192"
    assert all(finding.fix for finding in found.values())


def test_the_launch_settings(free_port: int) -> None:
    settings = parse_launch(["run_cpt.py", "16", "8", "127.0.0.1", str(free_port), "0"], {}, REPO_ROOT)
    findings = {finding.check: finding for finding in examine_launch(settings, {})}
    assert findings["launch"].level is Level.ERROR
    assert findings["other nodes"].level is Level.SKIPPED
    alone = parse_launch(["run_cpt.py", "2"], {"MASTER_PORT": str(free_port)}, REPO_ROOT)
    with socket.create_server(("127.0.0.1", free_port)):
        (text,) = [finding.text for finding in examine_launch(alone, {}) if finding.check == "launch"]
    assert f"MASTER_PORT {free_port} is in use on 127.0.0.1 by process {os.getpid()} (" in text
    assert name_listener(free_port) == ""


def test_processes_of_an_earlier_launch_are_found(free_port: int) -> None:
    # The launcher's id is unused, or reused by a process that is younger than the worker.
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = "import time; time.sleep(60)"
    stale = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "ASCEND_CPT_LAUNCHER_PID": str(gone.pid)})
    supervised = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "ASCEND_CPT_LAUNCHER_PID": str(os.getpid())}
    )
    try:
        deadline = time.monotonic() + 10
        while stale.pid not in find_stale_workers():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert supervised.pid not in find_stale_workers()
        settings = parse_launch(["run_cpt.py", "2"], {"MASTER_PORT": str(free_port)}, REPO_ROOT)
        (finding,) = [f for f in examine_launch(settings, {}) if f.fix == f"kill {stale.pid}"]
        assert "time.sleep(60)" in finding.text
        assert psutil.pid_exists(stale.pid)
    finally:
        for process in (stale, supervised):
            process.kill()
            process.wait()


def test_the_launcher_prints_warnings_and_stops_at_errors(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = parse_launch(["run_cpt.py", "8"], {}, REPO_ROOT)
    found = [
        Finding(level=Level.WARNING, check="memory", text="1 GB", fix="buy"),
        Finding(level=Level.OK, check="x", text="y"),
    ]
    monkeypatch.setattr(examine_module, "examine", lambda node: found)
    monkeypatch.setattr(examine_module, "has_npu", lambda: True)
    examine_before_launch(settings, {})
    assert capsys.readouterr().err == "doctor: warning     memory: 1 GB; buy\n"
    found.append(Finding(level=Level.ERROR, check="cann", text="7.0"))
    with pytest.raises(ClusterError, match="the doctor found errors .*SKIP_DOCTOR=1"):
        examine_before_launch(settings, {})
    examine_before_launch(settings, {"SKIP_DOCTOR": "1"})
    monkeypatch.setattr(examine_module, "has_npu", lambda: False)
    examine_before_launch(settings, {})


def test_the_command(tmp_path: Path, free_port: int) -> None:
    command = [sys.executable, str(REPO_ROOT / "tools/doctor.py"), "--master-port", str(free_port)]
    result = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False, timeout=60)
    assert result.returncode in (0, 1), result.stderr
    assert result.stdout.startswith("ok          python: 3.1")
    worse = subprocess.run([*command, "--disk-gb", "1e9"], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert worse.returncode == 1
    assert "error       disk: " in worse.stdout
