from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ascend_cpt.cluster.launch.arguments import REPO_ROOT, LaunchSettings, parse_launch
from ascend_cpt.cluster.launch.workers import worker_entry
from ascend_cpt.cluster.launch.workers.command import build_command, build_environment
from ascend_cpt.cluster.node.npu_tools import has_npu

KEY_FILE = Path("/run/user/0/ascend_cpt_x/key")


def parse(*arguments: str) -> LaunchSettings:
    return parse_launch(["run_cpt.py --name 'a b'", *arguments], {}, REPO_ROOT)


def test_msrun_gets_every_value() -> None:
    command = build_command(parse("64", "8", "10.0.0.1", "8119", "3", "logs", "True", "300"))
    assert command[:3] == [sys.executable, "-m", "mindspore.parallel.cluster.run"]
    options = dict(word.removeprefix("--").split("=") for word in command[3:-5])
    assert options == {
        "worker_num": "64",
        "local_worker_num": "8",
        "master_addr": "10.0.0.1",
        "master_port": "8119",
        "node_rank": "3",
        "log_dir": str(REPO_ROOT / "logs/node_3"),
        "join": "False",
        "cluster_time_out": "300",
        "bind_core": str(has_npu()),
    }
    assert command[-4:] == [worker_entry.__file__, str(REPO_ROOT / "run_cpt.py"), "--name", "a b"]


def test_a_single_worker_runs_without_msrun() -> None:
    command = build_command(parse("1"))
    assert command == [sys.executable, worker_entry.__file__, str(REPO_ROOT / "run_cpt.py"), "--name", "a b"]
    environment = build_environment(parse("1"), {}, KEY_FILE)
    assert (environment["RANK_ID"], environment["RANK_SIZE"]) == ("0", "1")


def test_the_environment_extends_the_callers() -> None:
    environment = build_environment(
        parse("2"), {"PYTHONPATH": "mine", "PATH": "bin", "LOG_MF_PATH": "there", "X": "1"}, KEY_FILE
    )
    assert environment["PYTHONPATH"] == f"{REPO_ROOT}:mine"
    assert environment["PATH"] == f"{Path(sys.executable).parent}:bin"
    assert (environment["LOG_MF_PATH"], environment["X"]) == ("there", "1")
    assert "RANK_ID" not in environment
    logs = REPO_ROOT / "output/msrun_log"
    assert environment["ASCEND_CPT_PROGRESS_FILE"] == str(logs / "last_step")
    assert environment["ASCEND_CPT_STOP_FILE"] == str(logs / "stopped_itself")
    assert build_environment(parse("2"), {}, KEY_FILE)["PYTHONPATH"] == str(REPO_ROOT)


def test_the_workers_of_one_node_meet_on_the_loopback_address() -> None:
    hosts = [("2", "2", "10.0.0.1", "8118", "0"), ("4", "2", "10.0.0.1", "8118", "0")]
    found = [build_environment(parse(*host), {}, KEY_FILE) for host in hosts]
    assert [environment["ASCEND_CPT_CHANNEL_HOST"] for environment in found] == ["127.0.0.1", "10.0.0.1"]
    assert found[0]["ASCEND_CPT_CHANNEL_KEY_FILE"] == str(KEY_FILE)


@pytest.mark.parametrize("num_workers", ["1", "2"])
def test_workers_wait_long_enough_for_stages_that_compile(num_workers: str) -> None:
    # MindSpore sets 600 on import where nothing is set.
    assert build_environment(parse(num_workers), {}, KEY_FILE)["HCCL_CONNECT_TIMEOUT"] == "1800"
    assert (
        build_environment(parse(num_workers), {"HCCL_CONNECT_TIMEOUT": ""}, KEY_FILE)["HCCL_CONNECT_TIMEOUT"] == "1800"
    )
    assert (
        build_environment(parse(num_workers), {"HCCL_CONNECT_TIMEOUT": "7200"}, KEY_FILE)["HCCL_CONNECT_TIMEOUT"]
        == "7200"
    )


def test_an_npu_is_detected_by_its_device_file(tmp_path: Path) -> None:
    (tmp_path / "davinci_manager").touch()
    assert not has_npu(tmp_path)
    (tmp_path / "davinci0").touch()
    assert has_npu(tmp_path)
