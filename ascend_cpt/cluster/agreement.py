"""How the processes of a job agree before training: each says something, and all read what everybody said.

Rank 0 collects and distributes; the channel is plain TCP beside MindSpore's own rendezvous, so that it works before any
device is set up, on every backend. A process that cannot start says why, and all others end with that reason at once
instead of waiting for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ascend_cpt.errors import EXIT_FAILURE, ClusterError, CptError

PORT = "ASCEND_CPT_AGREEMENT_PORT"
TIMEOUT_S = 600.0
RETRY_S = 0.2
LINGER_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Member:
    """A process of the job. `node` is the node rank, `host` its host name."""

    rank: int
    node: int
    host: str

    def __str__(self) -> str:
        return f"node {self.node} ({self.host})"


class Agreement:
    """The channel between the processes of a job; with one process every answer is its own.

    Use as a context manager: an error that leaves the block is told to all others.
    """

    def __init__(
        self, *, rank: int, size: int, node: int, address: tuple[str, int] | None, timeout_s: float = TIMEOUT_S
    ) -> None:
        assert size == 1 or address is not None
        self._me = Member(rank=rank, node=node, host=socket.gethostname())
        self._size, self._timeout_s = size, timeout_s
        self._address = address
        self._socket: socket.socket | None = None
        self._collector: _Collector | None = None
        self._received = b""
        self.members: tuple[Member, ...] = (self._me,)

    def __enter__(self) -> Agreement:
        """Meet the others.

        Raises:
            ClusterError: when they do not all come within the time, or one of them has failed.
        """
        if self._size > 1:
            assert self._address is not None
            if self._me.rank == 0:
                self._collector = _Collector(self._size, self._address[1])
                self._collector.start()
            self._connect(self._address)
            self.members = tuple(Member(**value) for value in self.exchange("hello", vars(self._me)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Leave; when it is because of an error, tell the others first."""
        if self._socket is None:
            return
        # What came from another process is known to all already.
        if error is not None and not isinstance(error, (OtherProcessError, MissingProcessError)):
            text = str(error) if isinstance(error, CptError) else f"{type(error).__name__}: {error}"
            code = error.exit_code if isinstance(error, CptError) else EXIT_FAILURE
            self._send({"failure": f"{self._me}: {text}", "exit_code": code})
        self._socket.close()
        if error is not None and self._collector is not None:
            # The collector lives in this process: let it tell the others before we end.
            self._collector.join(LINGER_S)

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self._me.rank

    @property
    def first_local_rank(self) -> int:
        """The lowest rank on this process's node: it does what is done once per node."""
        return min(member.rank for member in self.members if member.node == self._me.node)

    @property
    def is_first_on_node(self) -> bool:
        """Whether this process does what is done once per node."""
        return self._me.rank == self.first_local_rank

    def exchange(self, topic: str, value: Any) -> list[Any]:
        """Return what every process said on `topic`, by rank; `value` (JSON) is what this one says.

        Raises:
            ClusterError: when another process failed, left, or did not answer within the time.
        """
        if self._size == 1:
            return [value]
        self._send({"rank": self._me.rank, "topic": topic, "value": value})
        answer = self._receive(topic)
        if "failure" in answer:
            raise OtherProcessError(answer["failure"], answer["exit_code"])
        assert answer["topic"] == topic, f"the processes talk about {answer['topic']} and {topic}"
        values: list[Any] = answer["values"]
        return values

    def _connect(self, address: tuple[str, int]) -> None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                self._socket = socket.create_connection(address, timeout=5)
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise MissingProcessError(
                        f"{self._me}: cannot reach rank 0 at {address[0]}:{address[1]} within {self._timeout_s:.0f} s "
                        f"({error}); is node 0 up, and is this port open between the nodes?"
                    ) from None
                time.sleep(RETRY_S)

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError):  # The answer, or its absence, tells why.
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self, topic: str) -> dict[str, Any]:
        assert self._socket is not None
        deadline = time.monotonic() + self._timeout_s
        while b"\n" not in self._received:
            self._socket.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                part = self._socket.recv(1 << 16)
            except TimeoutError:
                raise MissingProcessError(
                    f"{self._me}: not all {self._size} processes answered on {topic!r} within {self._timeout_s:.0f} s; "
                    "look into the logs of the other nodes"
                ) from None
            except OSError as error:
                part, reason = b"", f" ({error})"
            else:
                reason = ""
            if not part:
                raise MissingProcessError(f"rank 0 ended{reason}; its log tells why")
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


class OtherProcessError(ClusterError):
    """Another process of the job failed; its own message is the text, its exit code ours."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class MissingProcessError(ClusterError):
    """A process did not come, did not answer or ended without a word: a node or the network is down."""

    exit_code = EXIT_FAILURE


def join_job(rank: int, size: int, environ: Mapping[str, str] = os.environ) -> Agreement:
    """Return the channel of a launched job, from the environment that the launcher and msrun set."""
    node = int(environ.get("ASCEND_CPT_NODE_RANK", "0"))
    if size == 1:
        return Agreement(rank=rank, size=1, node=node, address=None)
    port = int(environ.get(PORT) or int(environ["MS_SCHED_PORT"]) + 1)
    timeout_s = float(environ.get("MS_TOPO_TIMEOUT") or TIMEOUT_S)
    return Agreement(rank=rank, size=size, node=node, address=(environ["MS_SCHED_HOST"], port), timeout_s=timeout_s)


class _Collector(threading.Thread):
    """Rank 0's part: waits until every process has spoken on a topic, then sends all of it to everybody."""

    def __init__(self, size: int, port: int) -> None:
        super().__init__(daemon=True, name="agreement")
        self._size = size
        try:
            self._listener = socket.create_server(("", port), backlog=4096)
        except OSError as error:
            raise ClusterError(
                f"port {port}: cannot listen for the other processes ({error.strerror}); another job may use it: "
                f"choose another master port, or set {PORT} on every node"
            ) from None
        self._selector = selectors.DefaultSelector()
        self._buffers: dict[socket.socket, bytes] = {}
        self._values: dict[int, Any] = {}
        self._topic: str | None = None
        self._failure: dict[str, Any] | None = None
        self._num_left = 0

    def run(self) -> None:
        """Serve until every process has left."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        while self._num_left < self._size:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    self._buffers[connection] = b""
                    self._selector.register(connection, selectors.EVENT_READ)
                    if self._failure is not None:
                        self._answer([connection], self._failure)
                else:
                    self._read(key.fileobj)  # type: ignore[arg-type]
        self._listener.close()

    def _read(self, connection: socket.socket) -> None:
        try:
            part = connection.recv(1 << 16)
        except OSError:
            part = b""
        if not part:
            self._selector.unregister(connection)
            del self._buffers[connection]
            connection.close()
            self._num_left += 1
            if self._values and self._failure is None:
                self._fail("a process ended without a word while others waited for it; look into the logs of all nodes")
            return
        self._buffers[connection] += part
        while b"\n" in self._buffers[connection]:
            line, _, self._buffers[connection] = self._buffers[connection].partition(b"\n")
            self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if self._failure is not None:
            return
        if "failure" in message:
            self._fail(message["failure"], message["exit_code"])
            return
        if self._topic is not None and message["topic"] != self._topic:
            self._fail(f"rank {message['rank']} is at {message['topic']!r}, others at {self._topic!r}")
            return
        self._topic = message["topic"]
        self._values[message["rank"]] = message["value"]
        if len(self._values) == self._size:
            values = [self._values[rank] for rank in range(self._size)]
            self._topic, self._values = None, {}
            self._answer(list(self._buffers), {"topic": message["topic"], "values": values})

    def _fail(self, reason: str, exit_code: int = EXIT_FAILURE) -> None:
        self._failure = {"failure": reason, "exit_code": exit_code}
        self._answer(list(self._buffers), self._failure)

    def _answer(self, connections: list[socket.socket], answer: Mapping[str, Any]) -> None:
        line = json.dumps(answer).encode() + b"\n"
        for connection in connections:
            try:
                connection.sendall(line)
            except OSError:
                continue  # It has left; its socket says so next.
