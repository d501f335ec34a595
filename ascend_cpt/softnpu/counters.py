"""Reads how often this process has used its emulated device: kernel launches, synchronizations, copies, collectives."""

from __future__ import annotations

import ctypes
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ascend_cpt.softnpu.environment import LIBRARIES


@dataclass(frozen=True, kw_only=True)
class DeviceCounts:
    """Number of calls since the start of the process. The order of the fields is that of `Counter` in `internal.h`."""

    launches: int
    collectives: int
    synchronizations: int
    """Calls in which the host waits for the device: for a stream, an event, the device or a synchronous copy."""
    copies_to_host: int
    copies_to_device: int

    def __sub__(self, earlier: DeviceCounts) -> DeviceCounts:
        """Return the calls since an earlier reading."""
        pairs = zip(fields(self), astuple(self), astuple(earlier), strict=True)
        return DeviceCounts(**{field.name: after - before for field, after, before in pairs})


def read_counts(folder: Path | None = None) -> DeviceCounts:
    """Return this process's counts.

    Args:
        folder: The folder of the emulated libraries, by default that of the environment.
    """
    library = ctypes.CDLL(str((folder or Path(os.environ[LIBRARIES])) / "libsoftnpu.so"))
    values = (ctypes.c_uint64 * len(fields(DeviceCounts)))()
    library.softnpu_read_counts(values)
    return DeviceCounts(**{field.name: value for field, value in zip(fields(DeviceCounts), values, strict=True)})
