"""The process of a launch that trains nothing: msrun starts the script once more as the workers' meeting point."""

from __future__ import annotations

import os


def is_scheduler() -> bool:
    """Return whether msrun started this process as the scheduler."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


def serve_workers() -> None:
    """Let the workers find each other; returns when the last one has left."""
    import mindspore as ms
    from mindspore.communication import init

    ms.set_device("CPU")  # whatever the workers use, the scheduler needs no device
    init("mccl")
