"""Ports for the jobs that tests start."""

from __future__ import annotations

import itertools
import os

from ascend_cpt.cluster.messages.ports import PORTS_OF_A_JOB, are_ports_free

PORTS_OF_A_WORKER = 2000
# Below the ports that the system itself gives to connections.
FIRST_PORT, LAST_PORT = 12_000, 32_000


def _list_ports() -> list[int]:
    """The ports of this worker of pytest, from a place that differs from one pytest to another."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    first = FIRST_PORT + worker * PORTS_OF_A_WORKER % (LAST_PORT - FIRST_PORT)
    ports = list(range(first, first + PORTS_OF_A_WORKER, PORTS_OF_A_JOB + 1))
    start = os.getpid() % len(ports)
    return ports[start:] + ports[:start]


_ports = itertools.cycle(_list_ports())


def find_free_port() -> int:
    """Return a port that nobody listens on, nor on the two above it; each call another one."""
    return next(port for port in _ports if are_ports_free(port))
