"""The job channel's server, which runs in a thread on rank 0."""

from __future__ import annotations

import threading
from typing import Any

from ascend_cpt.cluster.job.records import Failure, Member, Value, Values
from ascend_cpt.cluster.messages.peer import Peer
from ascend_cpt.cluster.messages.ports import CHANNEL_PORT_VARIABLE
from ascend_cpt.cluster.messages.records import InvalidRecord, decode, encode, read_record
from ascend_cpt.cluster.messages.secret import WORKERS
from ascend_cpt.cluster.messages.server import Server
from ascend_cpt.errors import EXIT_FAILURE, ClusterError

HELLO = "connection"
# A result holds all processes' values, such as the steps of hundreds of checkpoints from hundreds of processes.
MAX_VALUE_BYTES = 64 << 20
POLL_S = 0.2


class GatherServer(threading.Thread):
    """Waits until all processes have sent values for a topic, then sends all values to every process."""

    def __init__(self, size: int, address: tuple[str, int], key: bytes) -> None:
        super().__init__(daemon=True, name="job channel")
        self._size = size
        try:
            self._server = Server(
                address,
                key=key,
                purpose=WORKERS,
                size=size,
                accepts=lambda rank: rank < size,
                max_bytes=MAX_VALUE_BYTES,
            )
        except OSError as error:
            raise ClusterError(
                f"port {address[1]}: cannot listen for the other processes ({error.strerror}); another job may be "
                f"using it: choose another master port, or set {CHANNEL_PORT_VARIABLE} on every node"
            ) from None
        self._ranks: dict[Peer, int] = {}  # for the processes that have sent something
        self._members: dict[int, Member] = {}
        self._exited: set[int] = set()
        self._values: dict[int, Any] = {}
        self._topic: str | None = None
        self._failure: Failure | None = None
        self.error: Exception | None = None
        """The error that ended this thread too early, None while there is none."""

    @property
    def num_refused(self) -> int:
        """Number of connections that did not prove knowledge of the job's secret."""
        return self._server.refusals.count

    def run(self) -> None:
        """Serve until every process has disconnected. On an error, all connections close, so every process notices."""
        try:
            while len(self._exited) < self._size:
                for peer, payloads in self._server.poll(POLL_S):
                    self._read(peer, payloads)
        except Exception as error:
            self.error = error
        finally:
            self._server.close()

    def _read(self, peer: Peer, payloads: list[bytes] | None) -> None:
        if payloads is None:
            self._remove(peer)
        elif payloads:
            try:
                for payload in payloads:
                    self._take(peer, decode(payload, (Value, Failure)))
            except InvalidRecord:
                self._server.drop(peer)
                self._remove(peer)
        elif self._failure is not None:
            self._server.send(peer, encode(self._failure))

    def _remove(self, peer: Peer) -> None:
        """Note that a process has exited. One that has sent nothing may connect again."""
        rank = self._ranks.pop(peer, None)
        if rank is not None:
            self._exited.add(rank)
            self._check_missing()

    def _take(self, peer: Peer, record: Value | Failure) -> None:
        rank = peer.number
        assert rank is not None, "only peers that have proved that they know the key are read"
        if isinstance(record, Value):
            self._check_member(rank, record)
        if peer not in self._ranks:
            if rank in self._ranks.values():
                raise InvalidRecord("a rank that another process already has")
            self._ranks[peer] = rank
        if self._failure is not None:
            return
        if isinstance(record, Failure):
            self._fail(record.reason, record.exit_code)
        elif self._topic is not None and record.topic != self._topic:
            self._fail(
                f"rank {rank} is at the check {record.topic!r} while the others are at {self._topic!r}; "
                "start all nodes with the same version, command and configuration"
            )
        else:
            self._collect(rank, record)

    def _collect(self, rank: int, record: Value) -> None:
        if record.topic == HELLO:
            self._members[rank] = read_record(Member, record.value)
            if len(self._members) == self._size:
                self._server.close_to_new()
        self._topic = record.topic
        self._values[rank] = record.value
        if len(self._values) == self._size:
            values = tuple(self._values[rank] for rank in range(self._size))
            self._topic, self._values = None, {}
            self._answer(Values(topic=record.topic, values=values))
        else:
            self._check_missing()

    def _check_member(self, rank: int, record: Value) -> None:
        """Check that a process introduces itself, with the rank that it has proved, before it sends values."""
        if record.topic == HELLO:
            if read_record(Member, record.value).rank != rank:
                raise InvalidRecord("a different rank than in the handshake")
        elif rank not in self._members:
            raise InvalidRecord("a value before the first message")

    def _check_missing(self) -> None:
        """Fail the pending all_gather when a process that it needs has exited."""
        missing = self._exited - self._values.keys()
        if self._values and missing and self._failure is None:
            rank = min(missing)
            where = f" on {self._members[rank]}" if rank in self._members else ""
            self._fail(f"rank {rank}{where} ended without an error message while others waited for it; see its log")

    def _fail(self, reason: str, exit_code: int = EXIT_FAILURE) -> None:
        self._failure = Failure(reason=reason, exit_code=exit_code)
        self._answer(self._failure)

    def _answer(self, record: Values | Failure) -> None:
        self._server.send_all(encode(record))
