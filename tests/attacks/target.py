"""What the hostile peers have in common: a port to attack, and how to see what it answers."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ascend_cpt.cluster.messages.handshake import GREETING_BYTES

CLOSED = "closed after the greeting"
REFUSED = "refused"
NO_SERVER = "nobody listens"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A port of a job.

    `key` and `purpose` are what its processes know; `spare` is a number that none of them has; `size` is the number of
    workers, nodes and spare nodes.
    """

    address: tuple[str, int]
    key: bytes
    purpose: str
    spare: int
    handshake_s: float
    size: tuple[int, int, int] = (4, 2, 0)

    def dial(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=5)

    def drain(self, client: socket.socket, limit_s: float | None = None) -> bytes:
        """Return what the server sends until it closes; TimeoutError when it stays open."""
        deadline = time.monotonic() + (self.handshake_s + 5 if limit_s is None else limit_s)
        received = b""
        while True:
            client.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = client.recv(1 << 16)
            except ConnectionError:
                return received
            if not data:
                return received
            received += data

    def see_end(self, client: socket.socket) -> str:
        """Return the outcome for a peer that proved nothing: it may get the greeting, and no word more."""
        received = self.drain(client)
        return CLOSED if len(received) <= GREETING_BYTES else f"answered {len(received)} bytes"

    def throw(self, *parts: bytes) -> str:
        """Send bytes as an outsider and return the outcome."""
        with self.dial() as client:
            with contextlib.suppress(OSError):
                for part in parts:
                    client.sendall(part)
            return self.see_end(client)


Change = Callable[[int, bytes], bytes]


class Relay:
    """Passes the bytes between a client and the server, and changes those of the client: an attacker on the path.

    Args:
        target: The server.
        change: Given the number of a part and the part, returns what is passed on instead.
    """

    def __init__(self, target: Target, change: Change) -> None:
        self._target, self._change = target, change
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = ("127.0.0.1", self._listener.getsockname()[1])
        self.parts: list[bytes] = []
        self.server: socket.socket | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        self.server = self._target.dial()
        threading.Thread(target=self._pump, args=(self.server, client), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                self.parts.append(data)
                self.server.sendall(self._change(len(self.parts) - 1, data))

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        if self.server:
            self.server.close()


@contextmanager
def relayed(target: Target, change: Change = lambda number, part: part) -> Iterator[Relay]:
    """Have a relay before the server."""
    relay = Relay(target, change)
    relay.start()
    try:
        yield relay
    finally:
        relay.close()
