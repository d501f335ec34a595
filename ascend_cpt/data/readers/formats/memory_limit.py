"""Limits the memory allocated while reading one batch, because a small file can expand to gigabytes."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

_MIN_LIMIT_BYTES = 512 << 20
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def batch_limit_bytes(max_record_bytes: int) -> int:
    """Return how much memory a batch may take if records of this length are allowed."""
    return max(_MIN_LIMIT_BYTES, 8 * max_record_bytes)


@contextmanager
def limited_memory(num_bytes: int) -> Iterator[None]:
    """Make allocations beyond `num_bytes` in total fail with MemoryError or the library's own error.

    Memory-mapped files do not count. Other threads are limited too, so keep the block short.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        with open("/proc/self/statm", "rb") as file:
            limit = int(file.read().split()[5]) * _PAGE_BYTES + num_bytes
    except OSError:  # no /proc: no limit
        yield
        return
    for existing in (soft, hard):
        limit = limit if existing == resource.RLIM_INFINITY else min(limit, existing)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
