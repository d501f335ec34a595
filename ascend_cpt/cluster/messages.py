"""Newline-delimited JSON messages over TCP, between the processes of a job and between its launchers.

Launchers also send heartbeats.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
from collections.abc import Iterator
from typing import Any

# The coordinator listens on MASTER_PORT plus this offset; MASTER_PORT + 1 is the workers' job channel.
LAUNCHER_PORT_OFFSET = 2
LAUNCHER_PORT_VARIABLE = "ASCEND_CPT_LAUNCHER_PORT"
HEARTBEAT_S = 2.0
# A peer that sends nothing for this long is considered lost. Shorter network outages are tolerated.
HEARTBEAT_TIMEOUT_S = 45.0
SEND_TIMEOUT_S = 5.0
MAX_LINE_BYTES = 1 << 20

Message = dict[str, Any]


class Connection:
    """A TCP connection that carries messages. One thread reads; each send writes one complete message."""

    def __init__(self, peer: socket.socket, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self.socket = peer
        self._max_line_bytes = max_line_bytes
        self._unfinished = b""
        peer.settimeout(SEND_TIMEOUT_S)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, **message: Any) -> bool:
        """Send a message; return whether it was written to the socket."""
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[Message] | None:
        """Wait for data and return the complete messages; None when the peer closed or sent an invalid message."""
        try:
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            *lines, self._unfinished = (self._unfinished + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except TimeoutError:
            return []
        except (OSError, ValueError):
            return None
        if len(self._unfinished) > self._max_line_bytes or not all(isinstance(message, dict) for message in messages):
            return None
        return messages

    def close(self) -> None:
        """Close the connection; blocked reads on both ends return."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class LineServer:
    """A listening socket and its accepted connections, polled by one thread."""

    def __init__(self, port: int, *, backlog: int, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        """Listen on a port of all interfaces.

        Raises:
            OSError: when the port cannot be bound.
        """
        self._listener = socket.create_server(("", port), backlog=backlog)
        self._max_line_bytes = max_line_bytes
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.connections: list[Connection] = []

    def poll(self, timeout_s: float | None = None) -> Iterator[tuple[Connection, list[Message] | None]]:
        """Yield connections with what they received: [] for a new one, its messages, or None when the peer closed it.

        Connections that the caller drops during the iteration are skipped.
        """
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                peer, _ = self._listener.accept()
                connection = Connection(peer, self._max_line_bytes)
                self.connections.append(connection)
                self._selector.register(peer, selectors.EVENT_READ, connection)
                yield connection, []
            elif key.data in self.connections:
                yield key.data, key.data.receive()

    def drop(self, connection: Connection) -> None:
        """Close and remove a connection."""
        self.connections.remove(connection)
        self._selector.unregister(connection.socket)
        connection.close()

    def close(self) -> None:
        """Drop all connections and stop listening."""
        for connection in list(self.connections):
            self.drop(connection)
        self._selector.close()
        self._listener.close()
