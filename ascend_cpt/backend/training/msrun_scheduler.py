"""The scheduler process: msrun starts the script an additional time, as the rendezvous of the workers."""

from __future__ import annotations

import os
from collections.abc import Callable


def is_scheduler() -> bool:
    """Return whether msrun started this process as the scheduler."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


def serve_workers(wait: Callable[[], bool] = lambda: True) -> None:
    """Run the rendezvous of the workers; returns when the last one has exited.

    The rendezvous fails when not all workers have connected within the cluster timeout, which begins after `wait`.
    There is none if `wait` returns False: the workers exit without connecting.
    """
    import mindspore as ms
    from mindspore.communication import init

    ms.set_device("CPU")  # whatever the workers use, the scheduler needs no device
    if wait():
        init("mccl")
