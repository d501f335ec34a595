"""Messages between the processes of a job, and between its launchers: one JSON object per line over TCP.

Launchers also send a beat that says "still here".
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
from collections.abc import Iterator
from typing import Any

# The launchers meet this far above MASTER_PORT; MASTER_PORT + 1 is the workers' own channel.
LAUNCHER_PORT_OFFSET = 2
LAUNCHER_PORT_VARIABLE = "ASCEND_CPT_LAUNCHER_PORT"
BEAT_S = 2.0
# A peer that is not heard for so long is lost: shorter breaks of the network are ridden out.
SILENCE_S = 45.0
SEND_TIMEOUT_S = 5.0
MAX_LINE_BYTES = 1 << 20

Message = dict[str, Any]


class Connection:
    """A TCP connection of messages. One thread reads; sends are small and whole."""

    def __init__(self, peer: socket.socket, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self.socket = peer
        self._max_line_bytes = max_line_bytes
        self._unfinished = b""
        peer.settimeout(SEND_TIMEOUT_S)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, **message: Any) -> bool:
        """Send a message; return whether the connection took it."""
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[Message] | None:
        """Return the messages that have come, waiting for some bytes; None when the peer has left or talks nonsense."""
        try:
            part = self.socket.recv(1 << 16)
            if not part:
                return None
            *lines, self._unfinished = (self._unfinished + part).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except TimeoutError:
            return []
        except (OSError, ValueError):
            return None
        if len(self._unfinished) > self._max_line_bytes or not all(isinstance(message, dict) for message in messages):
            return None
        return messages

    def close(self) -> None:
        """Close; waiting readers of both ends wake up."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class LineServer:
    """A listening socket and the connections that it has accepted. One thread polls it."""

    def __init__(self, port: int, *, backlog: int, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        """Listen on a port of all interfaces.

        Raises:
            OSError: when the port cannot be had.
        """
        self._listener = socket.create_server(("", port), backlog=backlog)
        self._max_line_bytes = max_line_bytes
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.connections: list[Connection] = []

    def poll(self, timeout_s: float | None = None) -> Iterator[tuple[Connection, list[Message] | None]]:
        """Yield every connection that is new (with an empty list), has messages, or is closed by its peer (None).

        A connection that the caller has dropped meanwhile is passed over.
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
        """Close a connection and forget it."""
        self.connections.remove(connection)
        self._selector.unregister(connection.socket)
        connection.close()

    def close(self) -> None:
        """Drop all connections and stop listening."""
        for connection in list(self.connections):
            self.drop(connection)
        self._selector.close()
        self._listener.close()
