"""First step of every process that msrun starts: tie it to the launcher, then become the user's script.

Run by path with the standard library only, so that it costs milliseconds: `python worker.py SCRIPT [ARGUMENT ...]`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

LAUNCHER_PID = "ASCEND_CPT_LAUNCHER_PID"
NODE_RANK = "ASCEND_CPT_NODE_RANK"
WORKER_PYTHON = "ASCEND_CPT_WORKER_PYTHON"

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ADOPTION_TIMEOUT_S = 10.0


def main() -> None:
    """Replace this process by the script."""
    # msrun starts a scheduler wherever MASTER_ADDR is an address of the machine; only node 0 may have one.
    if os.environ.get("MS_ROLE") == "MS_SCHED" and os.environ[NODE_RANK] != "0":
        return
    tie_to_launcher(int(os.environ[LAUNCHER_PID]))
    python = os.environ[WORKER_PYTHON]
    os.execv(python, [python, "-u", *sys.argv[1:]])


def tie_to_launcher(launcher_pid: int) -> None:
    """Let the kernel kill this process when the launcher dies, however it dies.

    msrun starts us and ends; then the launcher adopts us. Under MindX msrun stays and looks after its workers itself.
    """
    deadline = time.monotonic() + ADOPTION_TIMEOUT_S
    while os.getppid() != launcher_pid:
        if not os.path.exists(f"/proc/{launcher_pid}"):
            # It was killed while msrun was still starting us: nobody would ever end this process.
            os.kill(os.getpid(), signal.SIGKILL)
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher_pid:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
