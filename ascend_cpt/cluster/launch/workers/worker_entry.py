"""Entry point of every process that msrun starts: becomes the user's script, and exits when the launcher does.

For a fast start, it is run by path and uses only the standard library: `python worker_entry.py SCRIPT [ARGUMENT ...]`.
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
    """Replace this process with the script."""
    # msrun starts a scheduler wherever MASTER_ADDR is a local address, but only node 0 may have one.
    if os.environ.get("MS_ROLE") == "MS_SCHED" and os.environ[NODE_RANK] != "0":
        return
    die_with_launcher(int(os.environ[LAUNCHER_PID]))
    python = os.environ[WORKER_PYTHON]
    os.execv(python, [python, "-u", *sys.argv[1:]])


def die_with_launcher(launcher_pid: int) -> None:
    """Make the kernel kill this process when the launcher exits for any reason.

    msrun starts this process and exits, and the launcher becomes its parent. Under MindX, msrun keeps running and
    supervises its workers itself.
    """
    deadline = time.monotonic() + ADOPTION_TIMEOUT_S
    while os.getppid() != launcher_pid:
        if not os.path.exists(f"/proc/{launcher_pid}"):
            # The launcher was killed while msrun was starting this process, so nothing else would end it.
            os.kill(os.getpid(), signal.SIGKILL)
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher_pid:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
