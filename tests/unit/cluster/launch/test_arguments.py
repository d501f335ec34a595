from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.cluster.launch.arguments import REPO_ROOT, LaunchSettings, UsageError, parse_launch
from ascend_cpt.errors import ClusterError

CMD = "run_cpt.py --config x.yaml"
SIX = (CMD, "64", "8", "10.0.0.1", "8118", "3")


def parse(*arguments: str, folder: Path = REPO_ROOT, **environ: str) -> LaunchSettings:
    return parse_launch(arguments, environ, folder)


def test_command_alone_takes_eight_workers_on_one_node() -> None:
    settings = parse(CMD)
    assert (settings.num_workers, settings.num_local_workers, settings.num_nodes, settings.node_rank) == (8, 8, 1, 0)
    assert (settings.master_addr, settings.master_port, settings.cluster_timeout_s) == ("127.0.0.1", 8118, 7200)
    assert settings.script == REPO_ROOT / "run_cpt.py"
    assert settings.script_arguments == ("--config", "x.yaml")
    assert settings.log_dir == REPO_ROOT / "output/msrun_log"


def test_worker_num_stays_on_one_node() -> None:
    settings = parse(CMD, "2")
    assert (settings.num_workers, settings.num_local_workers) == (2, 2)


def test_six_arguments_of_several_nodes() -> None:
    settings = parse(*SIX)
    assert (settings.num_workers, settings.num_local_workers, settings.num_nodes, settings.node_rank) == (64, 8, 8, 3)
    assert (settings.master_addr, settings.master_port, settings.first_rank) == ("10.0.0.1", 8118, 24)
    assert settings.log_dir == REPO_ROOT / "output/msrun_log/node_3"


def test_nine_arguments() -> None:
    settings = parse(*SIX, "logs", "False", "300")
    assert settings.log_dir == REPO_ROOT / "logs/node_3"
    assert (settings.cluster_timeout_s, settings.master_port) == (300, 8118)


@pytest.mark.parametrize("join", ["True", "False", "false"])
def test_the_one_node_form_is_recognized_by_join(join: str) -> None:
    settings = parse(CMD, "4", "9000", "logs", join, "300", NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1")
    assert (settings.num_workers, settings.num_nodes, settings.master_addr, settings.master_port) == (
        4,
        1,
        "127.0.0.1",
        9000,
    )
    assert (settings.log_dir, settings.cluster_timeout_s) == (REPO_ROOT / "logs", 300)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WORLD_SIZE": "4"}, (4, 4, 0)),
        ({"NNODES": "2", "NPUS_PER_NODE": "8", "NODE_RANK": "1"}, (16, 8, 1)),
        ({"NNODES": "2", "GPUS_PER_NODE": "4", "NODE_RANK": "1"}, (8, 4, 1)),
        ({"NNODES": "2", "WORLD_SIZE": "16", "NODE_RANK": "0"}, (16, 8, 0)),
        ({"WORLD_SIZE": "16", "NPUS_PER_NODE": "8", "NODE_RANK": "1"}, (16, 8, 1)),
        ({"NPUS_PER_NODE": "8"}, (8, 8, 0)),
    ],
)
def test_missing_arguments_come_from_the_environment(environ: dict[str, str], expected: tuple[int, int, int]) -> None:
    settings = parse(CMD, MASTER_ADDR="10.0.0.1", MASTER_PORT="9001", **environ)
    assert (settings.num_workers, settings.num_local_workers, settings.node_rank) == expected
    assert (settings.master_addr, settings.master_port) == ("10.0.0.1", 9001)


def test_arguments_override_the_environment() -> None:
    settings = parse(*SIX, NODE_RANK="1", MASTER_ADDR="10.9.9.9", MASTER_PORT="9001", WORLD_SIZE="2", NNODES="5")
    assert (settings.num_workers, settings.num_nodes, settings.node_rank) == (64, 8, 3)
    assert (settings.master_addr, settings.master_port) == ("10.0.0.1", 8118)


def test_worker_num_divides_over_the_nodes_of_the_environment() -> None:
    settings = parse(CMD, "4", NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1")
    assert (settings.num_local_workers, settings.first_rank) == (2, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (CMD, "64", "8"),
        (CMD, "64", "8", "10.0.0.1"),
        (CMD, "64", "8", "10.0.0.1", "8118"),
        (*SIX, "logs"),
        (*SIX, "logs", "False"),
        (*SIX, "logs", "maybe", "300"),
        (*SIX, "logs", "False", "300", "more"),
        (CMD, "64", "8", "", "8118", "0"),
        (CMD, ""),
        ("run_cpt.py", "--config", "x.yaml", "--other", "y", "z", "a"),
    ],
)
def test_arguments_that_match_no_form_are_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        parse(*arguments)


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        ((CMD, "64", "8", "10.0.0.1", "8118"), {}, "NODE_RANK is missing after MASTER_PORT"),
        ((CMD, "16"), {"NNODES": "2", "MASTER_ADDR": "10.0.0.1"}, "NODE_RANK is missing: the job has 2 nodes"),
        ((CMD, "16"), {"NNODES": "2", "NODE_RANK": "1"}, "MASTER_ADDR is missing"),
        ((CMD, "64", "7", "10.0.0.1", "8118", "0"), {}, "WORKER_NUM 64 is not a multiple of LOCAL_WORKER 7"),
        ((CMD, "15"), {"NNODES": "2"}, "15 workers cannot be divided evenly among NNODES=2"),
        ((CMD, "4", "8", "10.0.0.1", "8118", "0"), {}, "LOCAL_WORKER 8 is more than WORKER_NUM 4"),
        ((CMD, "x"), {}, "WORKER_NUM must be a whole number of at least 1, not 'x'"),
        ((CMD, "0"), {}, "WORKER_NUM must be"),
        ((CMD, "-1"), {}, "WORKER_NUM must be"),
        ((CMD, "64", "8", "10.0.0.1", "80", "0"), {}, "MASTER_PORT must be a whole number from 1024 to 65535"),
        ((CMD, "64", "8", "10.0.0.1", "99999", "0"), {}, "MASTER_PORT must be"),
        ((CMD, "64", "8", "10.0.0.1", "8118", "8"), {}, "NODE_RANK 8 is out of range"),
        ((CMD, "64", "8", "10.0.0.1", "8118", "-1"), {}, "NODE_RANK must be a whole number of at least 0"),
        ((CMD, "2"), {"NODE_RANK": "1"}, "NODE_RANK 1 is out of range"),
        ((CMD, "2"), {"MASTER_PORT": "x"}, "MASTER_PORT must be"),
        ((CMD,), {"WORLD_SIZE": "2", "NNODES": "2", "NPUS_PER_NODE": "8"}, "it is the number of workers, not of nodes"),
        ((CMD, "64"), {"NNODES": "2", "NPUS_PER_NODE": "8"}, "more than NPUS_PER_NODE=8"),
        (("absent.py", "2"), {}, "script not found: absent.py"),
        (("python",), {}, "CMD must name a Python script"),
        (("python -m absent",), {}, "CMD must name a Python script"),
        (("",), {}, "CMD must name a Python script"),
        (("run_cpt.py 'open",), {}, "cannot be split into words"),
    ],
)
def test_wrong_values_are_named(arguments: tuple[str, ...], environ: dict[str, str], message: str) -> None:
    with pytest.raises(ClusterError, match=message.replace("(", r"\(")):
        parse(*arguments, **environ)


@pytest.mark.parametrize("python", ["python", "python3", "python3.11", "/usr/bin/python3"])
def test_a_leading_python_is_accepted(python: str) -> None:
    assert parse(f"{python} {CMD}") == parse(CMD)


def test_the_script_is_searched_here_first_and_then_in_the_repository(tmp_path: Path) -> None:
    assert parse(CMD, folder=tmp_path).script == REPO_ROOT / "run_cpt.py"
    own = tmp_path / "run_cpt.py"
    own.touch()
    assert parse(CMD, folder=tmp_path).script == own
    assert parse(f"{own} x", folder=REPO_ROOT).script == own


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_script_arguments_survive(words: list[str]) -> None:
    assert parse(shlex.join(["run_cpt.py", *words])).script_arguments == tuple(words)
