"""Handles MASTER_ADDR values: IPv4, IPv6 (with or without brackets) or a host name."""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"


def strip_brackets(host: str) -> str:
    """Return a host without the brackets that may enclose an IPv6 address."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def listen(host: str, port: int, *, backlog: int) -> socket.socket:
    """Return a non-blocking socket that listens only on the first address of `host`, which must be local.

    Raises:
        OSError: when the name is unknown, the address does not belong to this machine, or the port is in use.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(strip_brackets(host), port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # An earlier job's connections in TIME_WAIT must not block the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def format_peer(address: object) -> str:
    """Return the host of a socket address, for messages."""
    return str(address[0]) if isinstance(address, tuple) and address else "?"
