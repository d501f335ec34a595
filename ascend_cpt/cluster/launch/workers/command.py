"""Builds the command line and environment for a node's processes."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from ascend_cpt.cluster.job.job_nodes import JOB_NODES_VARIABLE
from ascend_cpt.cluster.job.launcher_files import CONTINUE_FILE, PROGRESS_FILE, STACKS_DIR, STOP_FILE
from ascend_cpt.cluster.launch.arguments import REPO_ROOT, LaunchSettings
from ascend_cpt.cluster.launch.workers import worker_entry
from ascend_cpt.cluster.messages.address import LOOPBACK
from ascend_cpt.cluster.messages.ports import CHANNEL_HOST_VARIABLE, CHANNEL_KEY_VARIABLE
from ascend_cpt.cluster.node.npu_tools import CONNECT_TIMEOUT, DEFAULT_CONNECT_TIMEOUT_S, has_npu


def build_command(settings: LaunchSettings) -> list[str]:
    """Return the command that starts this node's processes: msrun, or the worker itself when it is the only one.

    msrun runs with --join=False. Otherwise it would hide the workers' exit codes and wait for the scheduler for half a
    minute after a failure. The launcher becomes the parent of the workers instead.
    """
    script = [worker_entry.__file__, str(settings.script), *settings.script_arguments]
    if settings.num_workers == 1:
        return [sys.executable, *script]
    return [
        sys.executable,
        "-m",
        "mindspore.parallel.cluster.run",
        f"--worker_num={settings.num_workers}",
        f"--local_worker_num={settings.num_local_workers}",
        f"--master_addr={settings.master_addr}",
        f"--master_port={settings.master_port}",
        f"--node_rank={settings.place}",
        f"--log_dir={settings.log_dir}",
        "--join=False",
        f"--cluster_time_out={settings.cluster_timeout_s}",
        # Core binding asks the driver which cores are close to each NPU.
        f"--bind_core={has_npu()}",
        # msrun runs `python` or `python3` from the PATH; the worker then switches to this interpreter.
        "python3" if shutil.which("python3", path=_search_path(os.environ)) else "python",
        *script,
    ]


def build_environment(settings: LaunchSettings, environ: Mapping[str, str], key_file: Path) -> dict[str, str]:
    """Return the environment for the node's processes: the caller's, this package, and the workers' variables.

    `key_file` holds the key of the workers' channel.
    """
    python_path = [str(REPO_ROOT), *filter(None, [environ.get("PYTHONPATH")])]
    environment = {
        CONNECT_TIMEOUT: str(DEFAULT_CONNECT_TIMEOUT_S),
        # MindFormers' log files; by default they go to ./output/log.
        "LOG_MF_PATH": str(settings.log_dir / "mindformers"),
        **{
            name: value
            for name, value in environ.items()
            if (value or name != CONNECT_TIMEOUT) and name != JOB_NODES_VARIABLE
        },
        "PATH": _search_path(environ),
        "PYTHONPATH": os.pathsep.join(python_path),
        worker_entry.LAUNCHER_PID: str(os.getpid()),
        worker_entry.NODE_RANK: str(settings.node_rank),
        PROGRESS_FILE: str(settings.progress_file),
        STOP_FILE: str(settings.stop_file),
        STACKS_DIR: str(settings.log_dir),
        CONTINUE_FILE: str(settings.continue_file),
        worker_entry.WORKER_PYTHON: sys.executable,
        CHANNEL_KEY_VARIABLE: str(key_file),
        CHANNEL_HOST_VARIABLE: settings.master_addr if settings.num_nodes > 1 else LOOPBACK,
    }
    if settings.num_workers == 1:
        environment |= {"RANK_ID": "0", "RANK_SIZE": "1"}
    return environment


def format_command(command: list[str]) -> str:
    """Return `command` as one shell line."""
    return shlex.join(command)


def _search_path(environ: Mapping[str, str]) -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
