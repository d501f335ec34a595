"""How the processes of a job agree before training: each says something, and all read what everybody said.

Rank 0 collects and distributes; the channel is plain TCP beside MindSpore's own rendezvous, so that it works before any
device is set up, on every backend. A process that cannot start says why, and all others end with that reason at once
instead of waiting for it.
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
# An answer holds what every process said: the steps of some hundred checkpoints, say, from some hundred processes.
MAX_LINE_BYTES = 64 << 20
HELLO = "hello"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A process of the job. `node` is the node rank, `host` its host name."""

    rank: int
    node: int
    host: str

    def __str__(self) -> str:
        return f"node {self.node} ({self.host})"


class JobChannel:
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
        self._connection: Connection | None = None
        self._collector: _Collector | None = None
        self.members: tuple[Member, ...] = (self._me,)

    def __enter__(self) -> JobChannel:
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
            self.members = tuple(Member(**value) for value in self.all_gather(HELLO, vars(self._me)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Leave; when it is because of an error, tell the others first."""
        if self._connection is None:
            return
        # What came from another process is known to all already.
        if error is not None and not isinstance(error, (OtherProcessError, MissingProcessError)):
            text = str(error) if isinstance(error, CptError) else f"{type(error).__name__}: {error}"
            code = error.exit_code if isinstance(error, CptError) else EXIT_FAILURE
            self._connection.send(rank=self._me.rank, failure=f"{self._me}: {text}", exit_code=code)
        self._connection.close()
        if self._collector is not None:
            # The collector lives in this process, which may end now: let it tell the others what it has to.
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

    def all_gather(self, topic: str, value: Any) -> list[Any]:
        """Return what every process said on `topic`, by rank; `value` (JSON) is what this one says.

        Raises:
            ClusterError: when another process failed, left, or did not answer within the time.
        """
        if self._size == 1:
            return [value]
        assert self._connection is not None
        self._connection.send(rank=self._me.rank, topic=topic, value=value)  # whether it arrived, the answer tells
        answer = self._receive(topic, self._connection)
        if "failure" in answer:
            raise OtherProcessError(answer["failure"], answer["exit_code"])
        assert answer["topic"] == topic, f"the processes talk about {answer['topic']} and {topic}"
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
                raise MissingProcessError("rank 0 ended; its log tells why")
            if messages:
                # One answer is on its way at most, but for a failure after it: the next exchange would tell that too.
                return messages[-1]
        raise MissingProcessError(
            f"{self._me}: not all {self._size} processes answered on {topic!r} within {self._timeout_s:.0f} s; "
            "look into the logs of the other nodes"
        )


class OtherProcessError(ClusterError):
    """Another process of the job failed; its own message is the text, its exit code ours."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class MissingProcessError(ClusterError):
    """A process did not come, did not answer or ended without a word: a node or the network is down."""

    exit_code = EXIT_FAILURE


def join_job(rank: int, size: int, environ: Mapping[str, str] = os.environ) -> JobChannel:
    """Return the channel of a launched job, from the environment that the launcher and msrun set."""
    node = int(environ.get("ASCEND_CPT_NODE_RANK", "0"))
    if size == 1:
        return JobChannel(rank=rank, size=1, node=node, address=None)
    port = int(environ.get(CHANNEL_PORT_VARIABLE) or int(environ["MS_SCHED_PORT"]) + 1)
    timeout_s = float(environ.get("MS_TOPO_TIMEOUT") or TIMEOUT_S)
    return JobChannel(rank=rank, size=size, node=node, address=(environ["MS_SCHED_HOST"], port), timeout_s=timeout_s)


class _Collector(threading.Thread):
    """Rank 0's part: waits until every process has spoken on a topic, then sends all of it to everybody."""

    def __init__(self, size: int, port: int) -> None:
        super().__init__(daemon=True, name="agreement")
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
        self._left: set[int] = set()
        self._values: dict[int, Any] = {}
        self._topic: str | None = None
        self._failure: Message | None = None

    def run(self) -> None:
        """Serve until every process has left."""
        while len(self._left) < self._size:
            for connection, messages in self._server.poll():
                self._read(connection, messages)
        self._server.close()

    def _read(self, connection: Connection, messages: list[Message] | None) -> None:
        if messages is None or not all("rank" in message for message in messages):
            self._part(connection)
        elif messages:
            for message in messages:
                self._ranks[connection] = message["rank"]
                self._take(message)
        elif connection not in self._ranks and self._failure is not None:
            connection.send(**self._failure)

    def _part(self, connection: Connection) -> None:
        """The peer has left, or is no process of this job."""
        self._server.drop(connection)
        rank = self._ranks.pop(connection, None)
        if rank is not None:
            self._left.add(rank)
            self._miss_nobody()

    def _take(self, message: Message) -> None:
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
        if message["topic"] == HELLO:
            self._members[message["rank"]] = Member(**message["value"])
        if len(self._values) == self._size:
            values = [self._values[rank] for rank in range(self._size)]
            self._topic, self._values = None, {}
            self._answer({"topic": message["topic"], "values": values})
        else:
            self._miss_nobody()

    def _miss_nobody(self) -> None:
        """Nobody may wait for one who has left."""
        missing = self._left - self._values.keys()
        if self._values and missing and self._failure is None:
            rank = min(missing)
            self._fail(
                f"rank {rank} on {self._members[rank]} ended without a word while others waited for it; read its log"
            )

    def _fail(self, reason: str, exit_code: int = EXIT_FAILURE) -> None:
        self._failure = {"failure": reason, "exit_code": exit_code}
        self._answer(self._failure)

    def _answer(self, answer: Message) -> None:
        for connection in self._server.connections:
            connection.send(**answer)  # One that has left says so by its socket.
