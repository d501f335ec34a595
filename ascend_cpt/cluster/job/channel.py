"""All-gather of JSON values between the processes of a job, before training.

Rank 0 collects and distributes the values over plain TCP, independent of MindSpore's rendezvous, so it works on every
backend before any device is initialized. A process that fails sends its error, and all others exit with that error at
once instead of waiting for it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ascend_cpt.cluster.messages import Connection, LineServer, Message
from ascend_cpt.errors import EXIT_FAILURE, ClusterError, CptError

CHANNEL_PORT_VARIABLE = "ASCEND_CPT_AGREEMENT_PORT"
TIMEOUT_S = 600.0
RETRY_S = 0.2
LINGER_S = 5.0
CONNECT_TIMEOUT_S = 5.0
# A result holds the values of all processes, such as the steps of hundreds of checkpoints from hundreds of processes.
MAX_LINE_BYTES = 64 << 20
HELLO = "connection"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A process of the job. `node` is the node rank, `host` its host name."""

    rank: int
    node: int
    host: str

    def __str__(self) -> str:
        return f"node {self.node} ({self.host})"


class JobChannel:
    """All-gather between the processes of a job; with one process it returns that process's value.

    Use as a context manager: an error raised inside the block is sent to all other processes.
    """

    def __init__(
        self, *, rank: int, size: int, node: int, address: tuple[str, int] | None, timeout_s: float = TIMEOUT_S
    ) -> None:
        assert size == 1 or address is not None
        self._me = Member(rank=rank, node=node, host=socket.gethostname())
        self._size, self._timeout_s = size, timeout_s
        self._address = address
        self._connection: Connection | None = None
        self._gather_server: _GatherServer | None = None
        self.members: tuple[Member, ...] = (self._me,)

    def __enter__(self) -> JobChannel:
        """Connect to the other processes.

        Raises:
            ClusterError: when not all processes connect within the timeout, or one of them failed.
        """
        if self._size > 1:
            assert self._address is not None
            if self._me.rank == 0:
                self._gather_server = _GatherServer(self._size, self._address[1])
                self._gather_server.start()
            self._connect(self._address)
            self.members = tuple(Member(**value) for value in self.all_gather(HELLO, vars(self._me)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Close the channel, after sending the error, if any, to the other processes."""
        if self._connection is None:
            return
        # An error received from another process was already sent to all.
        if error is not None and not isinstance(error, (OtherProcessError, MissingProcessError)):
            text = str(error) if isinstance(error, CptError) else f"{type(error).__name__}: {error}"
            code = error.exit_code if isinstance(error, CptError) else EXIT_FAILURE
            self._connection.send(rank=self._me.rank, failure=f"{self._me}: {text}", exit_code=code)
        self._connection.close()
        if self._gather_server is not None:
            # The server thread ends with this process: let it send pending messages first.
            self._gather_server.join(LINGER_S)

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self._me.rank

    @property
    def first_local_rank(self) -> int:
        """The lowest rank on this process's node. It performs the once-per-node work."""
        return min(member.rank for member in self.members if member.node == self._me.node)

    @property
    def is_first_on_node(self) -> bool:
        """Whether this process has the lowest rank on its node."""
        return self._me.rank == self.first_local_rank

    def all_gather(self, topic: str, value: Any) -> list[Any]:
        """Return the values that all processes passed for `topic`, in rank order. `value` must be JSON-serializable.

        Raises:
            ClusterError: when another process failed, exited or did not answer within the timeout.
        """
        if self._size == 1:
            return [value]
        assert self._connection is not None
        # A failed send shows up as a missing answer.
        self._connection.send(rank=self._me.rank, topic=topic, value=value)
        answer = self._receive(topic, self._connection)
        if "failure" in answer:
            raise OtherProcessError(answer["failure"], answer["exit_code"])
        assert answer["topic"] == topic, f"expected {topic}, received {answer['topic']}"
        values: list[Any] = answer["values"]
        return values

    def _connect(self, address: tuple[str, int]) -> None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                peer = socket.create_connection(address, timeout=CONNECT_TIMEOUT_S)
                self._connection = Connection(peer, MAX_LINE_BYTES)
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise MissingProcessError(
                        f"{self._me}: cannot reach rank 0 at {address[0]}:{address[1]} within {self._timeout_s:.0f} s "
                        f"({error}); is node 0 up, and is this port open between the nodes?"
                    ) from None
                time.sleep(RETRY_S)

    def _receive(self, topic: str, connection: Connection) -> Message:
        deadline = time.monotonic() + self._timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            connection.socket.settimeout(left_s)
            messages = connection.receive()
            if messages is None:
                raise MissingProcessError("rank 0 ended; see its log for the cause")
            if messages:
                # At most one answer is pending. A failure may follow it, and the next all_gather returns that too.
                return messages[-1]
        raise MissingProcessError(
            f"{self._me}: not all {self._size} processes reached the check {topic!r} within {self._timeout_s:.0f} s; "
            "check the logs of the other nodes"
        )


class OtherProcessError(ClusterError):
    """Another process of the job failed. The message and the exit code are those of that process."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class MissingProcessError(ClusterError):
    """A process did not connect, did not answer or ended without reporting an error."""

    exit_code = EXIT_FAILURE


def join_job(rank: int, size: int, environ: Mapping[str, str] = os.environ) -> JobChannel:
    """Return the channel of a launched job, from the environment variables set by the launcher and msrun."""
    node = int(environ.get("ASCEND_CPT_NODE_RANK", "0"))
    if size == 1:
        return JobChannel(rank=rank, size=1, node=node, address=None)
    port = int(environ.get(CHANNEL_PORT_VARIABLE) or int(environ["MS_SCHED_PORT"]) + 1)
    timeout_s = float(environ.get("MS_TOPO_TIMEOUT") or TIMEOUT_S)
    return JobChannel(rank=rank, size=size, node=node, address=(environ["MS_SCHED_HOST"], port), timeout_s=timeout_s)


class _GatherServer(threading.Thread):
    """Server thread on rank 0: waits for the values of all processes for a topic, then sends them to all."""

    def __init__(self, size: int, port: int) -> None:
        super().__init__(daemon=True, name="job channel")
        self._size = size
        try:
            self._server = LineServer(port, backlog=4096, max_line_bytes=MAX_LINE_BYTES)
        except OSError as error:
            raise ClusterError(
                f"port {port}: cannot listen for the other processes ({error.strerror}); another job may use it: "
                f"choose another master port, or set {CHANNEL_PORT_VARIABLE} on every node"
            ) from None
        self._ranks: dict[Connection, int] = {}
        self._members: dict[int, Member] = {}
        self._exited: set[int] = set()
        self._values: dict[int, Any] = {}
        self._topic: str | None = None
        self._failure: Message | None = None

    def run(self) -> None:
        """Serve until every process has disconnected."""
        while len(self._exited) < self._size:
            for connection, messages in self._server.poll():
                self._read(connection, messages)
        self._server.close()

    def _read(self, connection: Connection, messages: list[Message] | None) -> None:
        if messages is None or not all("rank" in message for message in messages):
            self._remove(connection)
        elif messages:
            for message in messages:
                self._ranks[connection] = message["rank"]
                self._take(message)
        elif connection not in self._ranks and self._failure is not None:
            connection.send(**self._failure)

    def _remove(self, connection: Connection) -> None:
        """Remove a connection whose peer disconnected or is not part of this job."""
        self._server.drop(connection)
        rank = self._ranks.pop(connection, None)
        if rank is not None:
            self._exited.add(rank)
            self._check_missing()

    def _take(self, message: Message) -> None:
        if self._failure is not None:
            return
        if "failure" in message:
            self._fail(message["failure"], message["exit_code"])
            return
        if self._topic is not None and message["topic"] != self._topic:
            self._fail(
                f"rank {message['rank']} is at the check {message['topic']!r} while the others are at {self._topic!r}; "
                "start all nodes with the same version, command and configuration"
            )
            return
        self._topic = message["topic"]
        self._values[message["rank"]] = message["value"]
        if message["topic"] == HELLO:
            self._members[message["rank"]] = Member(**message["value"])
        if len(self._values) == self._size:
            values = [self._values[rank] for rank in range(self._size)]
            self._topic, self._values = None, {}
            self._answer({"topic": message["topic"], "values": values})
        else:
            self._check_missing()

    def _check_missing(self) -> None:
        """Fail the pending all_gather when a process that it needs has exited."""
        missing = self._exited - self._values.keys()
        if self._values and missing and self._failure is None:
            rank = min(missing)
            self._fail(
                f"rank {rank} on {self._members[rank]} ended without an error message while "
                "others waited for it; see its log"
            )

    def _fail(self, reason: str, exit_code: int = EXIT_FAILURE) -> None:
        self._failure = {"failure": reason, "exit_code": exit_code}
        self._answer(self._failure)

    def _answer(self, answer: Message) -> None:
        for connection in self._server.connections:
            connection.send(**answer)  # poll() reports closed connections
