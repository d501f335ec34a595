"""Maps cluster schedulers' environment variables to the ones that the launcher reads.

Supported: MindX (Ascend Operator's environment variables for MindSpore and PyTorch jobs), Volcano's svc and env
plugins and ModelArts on top of it, Slurm's srun, PAI DLC. With each of them, every *node* starts one launcher.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ascend_cpt.errors import ClusterError


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """A scheduler, with the variables that identify it (all must be set) and the mapping of its values."""

    name: str
    signs: tuple[str, ...]
    translate: Callable[[Mapping[str, str]], dict[str, str]]


def find_scheduler(environ: Mapping[str, str]) -> Scheduler | None:
    """Return the scheduler that started this process, or None if no known one did."""
    return next((known for known in SCHEDULERS if all(environ.get(sign) for sign in known.signs)), None)


def add_scheduler_values(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` with MASTER_ADDR, MASTER_PORT, NNODES, NODE_RANK and NPUS_PER_NODE from the scheduler.

    Values that the user has set take precedence. WORLD_SIZE counts nodes with some schedulers and workers with others,
    so it is dropped when there is a scheduler. Raises ClusterError for an invalid launch.
    """
    if not (scheduler := find_scheduler(environ)):
        return dict(environ)
    translated = scheduler.translate(environ)
    kept = {name: value for name, value in environ.items() if value and name != "WORLD_SIZE"}
    return {name: value for name, value in translated.items() if value} | kept


def first_host(hosts: str) -> str:
    """Return the first host of a Slurm host list: `gpu[03-05,9],login1` gives gpu03."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", hosts)
    assert match, hosts
    prefix, number, suffix = match.groups()
    return f"{prefix}{number or ''}{suffix}"


def _from_mindx_mindspore(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        "MASTER_ADDR": environ["MS_SCHED_HOST"],
        "MASTER_PORT": environ.get("MS_SCHED_PORT", ""),
        "NNODES": _divide(environ, "MS_WORKER_NUM", "MS_LOCAL_WORKER"),
        "NPUS_PER_NODE": environ["MS_LOCAL_WORKER"],
        "NODE_RANK": environ["MS_NODE_RANK"],
    }


def _from_mindx_pytorch(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        "NNODES": _divide(environ, "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
        "NPUS_PER_NODE": environ["LOCAL_WORLD_SIZE"],
        "NODE_RANK": environ["RANK"],
    }


def _from_volcano(environ: Mapping[str, str]) -> dict[str, str]:
    hosts = [host.strip() for host in environ["VC_WORKER_HOSTS"].split(",")]
    return {
        "MASTER_ADDR": hosts[0],
        "NNODES": environ.get("MA_NUM_HOSTS") or str(len(hosts)),
        # ModelArts uses this name for NPUs as well.
        "NPUS_PER_NODE": environ.get("MA_NUM_GPUS", ""),
        "NODE_RANK": environ["VC_TASK_INDEX"],
    }


def _from_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    num_nodes = environ["SLURM_STEP_NUM_NODES"]
    num_tasks = environ.get("SLURM_STEP_NUM_TASKS", num_nodes)
    if num_tasks != num_nodes:
        raise ClusterError(
            f"srun started {num_tasks} launchers on {num_nodes} nodes; start one per node with srun --ntasks-per-node=1"
        )
    return {
        "MASTER_ADDR": first_host(environ["SLURM_STEP_NODELIST"]),
        "NNODES": num_nodes,
        "NODE_RANK": environ["SLURM_NODEID"],
    }


def _from_pai(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        "NNODES": environ["WORLD_SIZE"],
        "NPUS_PER_NODE": environ["NPROC_PER_NODE"],
        "NODE_RANK": environ["RANK"],
    }


def _divide(environ: Mapping[str, str], whole: str, part: str) -> str:
    texts = environ[whole], environ[part]
    if not all(text.isdecimal() and int(text) > 0 for text in texts) or int(texts[0]) % int(texts[1]):
        raise ClusterError(f"{whole}={texts[0]} is not a multiple of {part}={texts[1]}; set both on every node")
    return str(int(texts[0]) // int(texts[1]))


# Most specific first: MindX runs on Volcano, so it also has Volcano's variables.
SCHEDULERS = (
    Scheduler(
        name="MindX",
        signs=("MS_SCHED_HOST", "MS_WORKER_NUM", "MS_LOCAL_WORKER", "MS_NODE_RANK"),
        translate=_from_mindx_mindspore,
    ),
    Scheduler(
        name="MindX", signs=("MASTER_ADDR", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"), translate=_from_mindx_pytorch
    ),
    Scheduler(name="PAI", signs=("MASTER_ADDR", "WORLD_SIZE", "NPROC_PER_NODE", "RANK"), translate=_from_pai),
    Scheduler(name="Volcano", signs=("VC_WORKER_HOSTS", "VC_TASK_INDEX"), translate=_from_volcano),
    Scheduler(
        name="Slurm", signs=("SLURM_STEP_NUM_NODES", "SLURM_STEP_NODELIST", "SLURM_NODEID"), translate=_from_slurm
    ),
)
