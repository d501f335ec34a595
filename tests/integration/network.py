"""Nodes as network namespaces of this machine, joined by a switch. Needs root and ip(8)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

CAN_MAKE_NAMESPACES = os.getuid() == 0 and shutil.which("ip") is not None
SWITCH = "cpt_switch"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def name_node(rank: int) -> str:
    return f"cpt_node{rank}"


def address_of(rank: int) -> str:
    return f"10.77.31.{rank + 1}"


def run_on(rank: int) -> tuple[str, ...]:
    """Return the words before a command that runs on a node."""
    return "ip", "netns", "exec", name_node(rank)


@contextmanager
def connected_nodes(num_nodes: int) -> Iterator[None]:
    """Have `num_nodes` nodes that reach each other through their device `line`."""
    names = [SWITCH, *map(name_node, range(num_nodes))]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)  # of a test that was killed
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", SWITCH, "link", "add", "bridge", "type", "bridge")
        ip("-n", SWITCH, "link", "set", "bridge", "up")
        for rank, name in enumerate(names[1:]):
            plug = f"plug{rank}"
            ip("-n", SWITCH, "link", "add", plug, "type", "veth", "peer", "name", "line", "netns", name)
            ip("-n", SWITCH, "link", "set", plug, "master", "bridge", "up")
            ip("-n", name, "address", "add", f"{address_of(rank)}/24", "dev", "line")
            ip("-n", name, "link", "set", "line", "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def cut(rank: int) -> None:
    """Take a node off the network."""
    ip("-n", name_node(rank), "link", "set", "line", "down")


def mend(rank: int) -> None:
    """Bring a node back."""
    ip("-n", name_node(rank), "link", "set", "line", "up")
