"""Messages between the processes of a job, and between its launchers: one JSON object per line over TCP.

Launchers also send a beat that says "still here".
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

# The launchers meet this far above MASTER_PORT; MASTER_PORT + 1 is the workers' own channel.
PORT_OFFSET = 2
PORT = "ASCEND_CPT_LAUNCHER_PORT"
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
