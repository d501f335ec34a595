"""The command line and the environment of one node's processes."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from ascend_cpt.cluster import worker
from ascend_cpt.cluster.arguments import REPO_ROOT, LaunchPlan
from ascend_cpt.cluster.progress import PROGRESS_FILE, STOP_FILE


def has_npu(device_folder: Path = Path("/dev")) -> bool:
    """Tell whether the driver shows an Ascend NPU (/dev/davinci0, ...)."""
    return any(device_folder.glob("davinci[0-9]*"))


def build_command(plan: LaunchPlan) -> list[str]:
    """Return the command that starts this node's processes: msrun, or the worker itself when it is the only one.

    msrun is not asked to wait for its workers: it would hide their exit codes and wait for the scheduler for half a
    minute after a failure. The launcher adopts them instead.
    """
    script = [worker.__file__, str(plan.script), *plan.script_arguments]
    if plan.num_workers == 1:
        return [sys.executable, *script]
    return [
        sys.executable,
        "-m",
        "mindspore.parallel.cluster.run",
        f"--worker_num={plan.num_workers}",
        f"--local_worker_num={plan.num_local_workers}",
        f"--master_addr={plan.master_addr}",
        f"--master_port={plan.master_port}",
        f"--node_rank={plan.node_rank}",
        f"--log_dir={plan.log_dir}",
        "--join=False",
        f"--cluster_time_out={plan.cluster_timeout_s}",
        # Binding asks the driver which cores are near which NPU.
        f"--bind_core={has_npu()}",
        # msrun runs `python` or `python3` of the PATH; the worker then changes to our interpreter.
        "python3" if shutil.which("python3", path=_search_path(os.environ)) else "python",
        *script,
    ]


def build_environment(plan: LaunchPlan, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the node's processes: the caller's, our package, and what the workers must know."""
    python_path = [str(REPO_ROOT), *filter(None, [environ.get("PYTHONPATH")])]
    environment = {
        # MindFormers' own log files, else written to ./output/log.
        "LOG_MF_PATH": str(plan.log_dir / "mindformers"),
        **environ,
        "PATH": _search_path(environ),
        "PYTHONPATH": os.pathsep.join(python_path),
        worker.LAUNCHER_PID: str(os.getpid()),
        worker.NODE_RANK: str(plan.node_rank),
        PROGRESS_FILE: str(plan.progress_file),
        STOP_FILE: str(plan.stop_file),
        worker.WORKER_PYTHON: sys.executable,
    }
    if plan.num_workers == 1:
        environment |= {"RANK_ID": "0", "RANK_SIZE": "1"}
    return environment


def format_command(command: list[str]) -> str:
    """Return `command` as one line for a shell."""
    return shlex.join(command)


def _search_path(environ: Mapping[str, str]) -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
