from __future__ import annotations

import pytest

from ascend_cpt.cluster.launch.arguments import REPO_ROOT, parse_launch
from ascend_cpt.cluster.launch.schedulers import add_scheduler_values, find_scheduler, first_host
from ascend_cpt.errors import ClusterError

MINDX_MINDSPORE = {
    "MS_SCHED_HOST": "10.0.0.1",
    "MS_SCHED_PORT": "2222",
    "MS_WORKER_NUM": "32",
    "MS_LOCAL_WORKER": "8",
    "MS_NODE_RANK": "3",
}
MINDX_PYTORCH = {
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "2222",
    "WORLD_SIZE": "32",
    "LOCAL_WORLD_SIZE": "8",
    "RANK": "3",
}
MODELARTS = {
    "MA_NUM_HOSTS": "4",
    "MA_NUM_GPUS": "8",
    "VC_TASK_INDEX": "3",
    "VC_WORKER_HOSTS": "job-worker-0.job,job-worker-1.job,job-worker-2.job,job-worker-3.job",
}
VOLCANO = {"VC_TASK_INDEX": "3", "VC_WORKER_HOSTS": "w-0.j, w-1.j, w-2.j, w-3.j", "VC_WORKER_NUM": "4"}
SLURM = {
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "npu[03-05,9]",
    "SLURM_NODEID": "3",
}
PAI = {"MASTER_ADDR": "dlc-master-0", "MASTER_PORT": "2222", "WORLD_SIZE": "4", "RANK": "3", "NPROC_PER_NODE": "8"}


@pytest.mark.parametrize(
    ("environ", "name", "address", "port"),
    [
        (MINDX_MINDSPORE, "MindX", "10.0.0.1", 2222),
        (MINDX_PYTORCH, "MindX", "10.0.0.1", 2222),
        (MODELARTS, "Volcano", "job-worker-0.job", 8118),
        (VOLCANO, "Volcano", "w-0.j", 8118),
        (SLURM, "Slurm", "npu03", 8118),
        (PAI, "PAI", "dlc-master-0", 2222),
    ],
)
def test_the_scheduler_sets_rank_and_master(environ: dict[str, str], name: str, address: str, port: int) -> None:
    scheduler = find_scheduler(environ)
    assert scheduler
    assert scheduler.name == name
    settings = parse_launch(["run_cpt.py"], environ, REPO_ROOT)
    assert (settings.num_workers, settings.num_nodes, settings.node_rank) == (32, 4, 3)
    assert (settings.master_addr, settings.master_port) == (address, port)


def test_the_users_variables_and_arguments_take_precedence() -> None:
    environ = VOLCANO | {"MASTER_ADDR": "10.9.9.9", "NPUS_PER_NODE": "2"}
    settings = parse_launch(["run_cpt.py"], environ, REPO_ROOT)
    assert (settings.master_addr, settings.num_local_workers) == ("10.9.9.9", 2)
    settings = parse_launch(["run_cpt.py", "4", "2", "10.8.8.8", "9000", "1"], MODELARTS, REPO_ROOT)
    assert (settings.num_nodes, settings.node_rank, settings.master_addr, settings.master_port) == (
        2,
        1,
        "10.8.8.8",
        9000,
    )


def test_no_scheduler_changes_nothing() -> None:
    environ = {"WORLD_SIZE": "4", "MASTER_ADDR": "x", "SLURM_JOB_ID": "1"}
    assert find_scheduler(environ) is None
    assert add_scheduler_values(environ) == environ


def test_several_launchers_on_a_slurm_node_are_refused() -> None:
    with pytest.raises(ClusterError, match="32 launchers on 4 nodes; start one per node with srun --ntasks-per-node=1"):
        add_scheduler_values(SLURM | {"SLURM_STEP_NUM_TASKS": "32"})


@pytest.mark.parametrize("number", ["7", "x", "0"])
def test_workers_that_do_not_divide_are_named(number: str) -> None:
    with pytest.raises(ClusterError, match=f"MS_WORKER_NUM=32 is not a multiple of MS_LOCAL_WORKER={number}"):
        add_scheduler_values(MINDX_MINDSPORE | {"MS_LOCAL_WORKER": number})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("npu1", "npu1"),
        ("npu1,npu2", "npu1"),
        ("npu[1-4]", "npu1"),
        ("npu[003,007-9],login", "npu003"),
        ("rack1-npu[5]-ib,x", "rack1-npu5-ib"),
    ],
)
def test_the_first_host_of_slurms_notation(hosts: str, first: str) -> None:
    assert first_host(hosts) == first
