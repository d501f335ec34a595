"""The scheduler process: msrun starts the script one additional time to serve as the workers' rendezvous."""

from __future__ import annotations

import os
from collections.abc import Callable


def is_scheduler() -> bool:
    """Return whether msrun started this process as the scheduler."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


def serve_workers(wait: Callable[[], bool] = lambda: True) -> None:
    """Run the workers' rendezvous and return when the last worker has exited.

    The rendezvous fails if not all workers connect within the cluster timeout, which begins after `wait`. If `wait`
    returns False, the workers exit without connecting and there is no rendezvous.
    """
    import mindspore as ms
    from mindspore.communication import init

    ms.set_device("CPU")  # the scheduler needs no device, whatever the workers use
    if wait():
        init("mccl")
