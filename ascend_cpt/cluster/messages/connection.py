"""A client's connection to one of its job's servers."""

from __future__ import annotations

import contextlib
import hmac
import socket
import threading
import time

from ascend_cpt.cluster.messages.address import strip_brackets
from ascend_cpt.cluster.messages.frames import FrameReader, FrameWriter, InvalidFrame
from ascend_cpt.cluster.messages.handshake import GREETING_BYTES, PROOF_BYTES, Session, answer_greeting

SEND_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5.0
MAX_MESSAGE_BYTES = 1 << 20
# How long a refused client tries again before it reports a wrong secret. A server that is still starting, or
# that has too many connections from other programs, may close a connection too.
REFUSED_LIMIT_S = 30.0


class RefusedError(ConnectionError):
    """The handshake failed because the server has another secret, or another program listens there."""


class Connection:
    """A connection after the handshake. Several threads may send; one reads."""

    def __init__(self, connected: socket.socket, session: Session, max_bytes: int) -> None:
        self.socket = connected
        self._writer = FrameWriter(session.frame_key("client"))
        self._reader = FrameReader(session.frame_key("server"), max_bytes)
        self._lock = threading.Lock()
        connected.settimeout(SEND_TIMEOUT_S)

    def send(self, payload: bytes) -> bool:
        """Send a message. Return whether it was written to the socket. On failure, the connection is closed."""
        with self._lock:
            try:
                self.socket.sendall(self._writer.make_header(payload))
                self.socket.sendall(payload)
            except OSError:
                # Part of the frame may have been sent, so nothing can follow it.
                self.close()
                return False
        return True

    def receive(self) -> list[bytes] | None:
        """Wait for data and return complete messages, or None if the peer closed or sent an invalid frame."""
        try:
            data = self.socket.recv(1 << 18)
            return self._reader.feed(data) if data else None
        except TimeoutError:
            return []
        except (OSError, InvalidFrame):
            return None

    def close(self) -> None:
        """Close the connection, so that blocked reads on both ends return."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def connect(
    address: tuple[str, int], *, key: bytes, purpose: str, number: int, max_bytes: int = MAX_MESSAGE_BYTES
) -> Connection:
    """Connect to one of the job's servers. Both sides prove that they know the key.

    Args:
        address: Host and port.
        key: The job's key for this purpose.
        purpose: Name of the server. Both sides must use the same one.
        number: This client's node or rank.
        max_bytes: Maximum size of a message from the server.

    Raises:
        RefusedError: when the handshake failed.
        OSError: when no connection was made.
    """
    connected = socket.create_connection((strip_brackets(address[0]), address[1]), timeout=CONNECT_TIMEOUT_S)
    try:
        session = _shake_hands(connected, key=key, purpose=purpose, number=number)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Connection(connected, session, max_bytes)
    except BaseException:
        connected.close()
        raise


def _shake_hands(connected: socket.socket, *, key: bytes, purpose: str, number: int) -> Session:
    deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
    try:
        greeting = _receive_exactly(connected, GREETING_BYTES, deadline_s)
        answer, session = answer_greeting(greeting, key=key, purpose=purpose, number=number)
        connected.sendall(answer)
        proof = _receive_exactly(connected, PROOF_BYTES, deadline_s)
    except TimeoutError:
        raise  # a server that is busy or hangs
    except (OSError, ValueError) as error:
        raise RefusedError(str(error)) from None
    if not hmac.compare_digest(proof, session.prove("server")):
        raise RefusedError("the server does not know the job's secret")
    return session


def _receive_exactly(connected: socket.socket, num_bytes: int, deadline_s: float) -> bytes:
    received = b""
    while len(received) < num_bytes:
        connected.settimeout(max(deadline_s - time.monotonic(), 0.001))
        data = connected.recv(num_bytes - len(received))
        if not data:
            raise ConnectionError("the connection was closed during the handshake")
        received += data
    return received
