"""A connection that a server accepted, before and after its handshake. Nothing here blocks."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque

from ascend_cpt.cluster.messages.frames import FrameReader, FrameWriter, InvalidFrame
from ascend_cpt.cluster.messages.handshake import ANSWER_BYTES, MAGIC, Session, check_answer, make_nonce

RECEIVE_BYTES = 1 << 18


class Peer:
    """An accepted connection. `number` is the node or rank that the peer has proved, or None before that."""

    def __init__(self, connected: socket.socket, host: str) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.host = connected, host
        self.number: int | None = None
        self.accepted_s = time.monotonic()
        self._nonce = make_nonce()
        self._answer = b""
        self._reader: FrameReader | None = None
        self._writer: FrameWriter | None = None
        self._unsent: deque[memoryview] = deque()
        self.unsent_bytes = 0
        self.sent_s = self.accepted_s  # when the peer last took data

    def greet(self) -> None:
        """Send the greeting."""
        self._queue(MAGIC + self._nonce)

    def receive_answer(self, key: bytes, purpose: str) -> Session | None:
        """Read part of the client's answer. Return the session once the answer is complete and correct.

        Raises:
            ConnectionError: when the peer closed the connection or its proof is wrong.
        """
        data = self._receive(ANSWER_BYTES - len(self._answer))
        if data is None:
            return None
        self._answer += data
        if len(self._answer) < ANSWER_BYTES:
            return None
        session = check_answer(self._answer, key=key, purpose=purpose, server_nonce=self._nonce)
        if session is None:
            raise ConnectionError("a wrong proof")
        return session

    def admit(self, session: Session, max_bytes: int) -> None:
        """Send the server's proof to the peer. From now on, accept messages of up to `max_bytes`."""
        self.number = session.number
        self._reader = FrameReader(session.frame_key("client"), max_bytes)
        self._writer = FrameWriter(session.frame_key("server"))
        self._queue(session.prove("server"))

    def receive(self) -> list[bytes]:
        """Return the messages completed by the data received so far.

        Raises:
            ConnectionError: when the peer closed the connection or sent an invalid frame.
        """
        assert self._reader is not None
        data = self._receive(RECEIVE_BYTES)
        try:
            return self._reader.feed(data) if data else []
        except InvalidFrame as error:
            raise ConnectionError(str(error)) from None

    def send(self, payload: bytes, payload_hash: bytes) -> None:
        """Queue a message and send what the peer takes at once."""
        assert self._writer is not None
        self._queue(self._writer.make_header(payload, payload_hash), payload)

    def flush(self) -> None:
        """Send as much of the queue as the peer takes. Errors show up at the next `receive`."""
        with contextlib.suppress(OSError):
            while self._unsent:
                sent = self.socket.send(self._unsent[0])
                self.sent_s = time.monotonic()
                self.unsent_bytes -= sent
                if sent == len(self._unsent[0]):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = self._unsent[0][sent:]

    def close(self) -> None:
        """Close the connection without sending anything."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _queue(self, *parts: bytes) -> None:
        if not self._unsent:
            self.sent_s = time.monotonic()
        self._unsent.extend(memoryview(part) for part in parts if part)
        self.unsent_bytes += sum(map(len, parts))
        self.flush()

    def _receive(self, max_bytes: int) -> bytes | None:
        """Return received bytes, or None if there are none yet."""
        try:
            data = self.socket.recv(max_bytes)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise ConnectionError(str(error)) from None
        if not data:
            raise ConnectionError("closed")
        return data
