"""All-gather of JSON values between the processes of a job, before training.

Rank 0 collects and distributes the values over plain TCP, independent of MindSpore's rendezvous, so it works on every
backend before any device is initialized. A process that fails sends its error, and all others exit with that error at
once instead of waiting for the failed process.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ascend_cpt.cluster.job.gather_server import HELLO, MAX_VALUE_BYTES, GatherServer
from ascend_cpt.cluster.job.records import Failure, Member, Value, Values
from ascend_cpt.cluster.messages.connection import REFUSED_LIMIT_S, Connection, RefusedError, connect
from ascend_cpt.cluster.messages.ports import CHANNEL_HOST_VARIABLE, CHANNEL_KEY_VARIABLE, CHANNEL_PORT_VARIABLE
from ascend_cpt.cluster.messages.records import InvalidRecord, decode, encode, read_record
from ascend_cpt.cluster.messages.secret import INSECURE_SECRET, INSECURE_VARIABLE, WORKERS, derive_key, read_secret_file
from ascend_cpt.errors import EXIT_FAILURE, ClusterError, CptError

TIMEOUT_S = 600.0
RETRY_S = 0.2
LINGER_S = 5.0
# The answer holds the values of all processes.
MAX_ANSWER_BYTES = 4 * MAX_VALUE_BYTES
MAX_REASON_CHARACTERS = 100_000


class JobChannel:
    """All-gather between a job's processes. With one process, it returns that process's value.

    Use it as a context manager: an error raised inside the block is sent to all other processes.
    """

    def __init__(
        self,
        *,
        rank: int,
        size: int,
        node: int,
        address: tuple[str, int] | None,
        key: bytes = b"",
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Describe this process.

        Args:
            rank: Rank of this process.
            size: Number of processes.
            node: Node rank of this process.
            address: Host and port on which rank 0 listens. Only needed with several processes.
            key: The job's key. Only needed with several processes.
            timeout_s: Time limit of each all_gather.
        """
        assert size == 1 or (address is not None and key)
        self._me = Member(rank=rank, node=node, host=socket.gethostname())
        self._size, self._timeout_s = size, timeout_s
        self._address, self._key = address, key
        self._connection: Connection | None = None
        self._gather_server: GatherServer | None = None
        self.members: tuple[Member, ...] = (self._me,)

    def __enter__(self) -> JobChannel:
        """Connect to the other processes.

        Raises:
            ClusterError: when not all processes connect within the timeout, or a process failed.
        """
        if self._size > 1:
            assert self._address is not None
            if self._me.rank == 0:
                self._gather_server = GatherServer(self._size, self._address, self._key)
                self._gather_server.start()
            self._connect(self._address)
            try:
                self.members = tuple(read_record(Member, value) for value in self.all_gather(HELLO, vars(self._me)))
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Close the channel, after sending the error, if any, to the other processes."""
        if self._connection is None:
            self.close()
            return
        # An error received from another process has already been sent to all.
        if error is not None and not isinstance(error, (OtherProcessError, MissingProcessError)):
            text = str(error) if isinstance(error, CptError) else f"{type(error).__name__}: {error}"
            code = error.exit_code if isinstance(error, CptError) else EXIT_FAILURE
            self._connection.send(encode(Failure(reason=f"{self._me}: {text}"[:MAX_REASON_CHARACTERS], exit_code=code)))
        self.close()

    def close(self) -> None:
        """Disconnect. Rank 0 first waits up to LINGER_S for all others to disconnect, because it hosts the server."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._gather_server is not None:
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

    @property
    def num_local(self) -> int:
        """Number of processes on this process's node."""
        return sum(member.node == self._me.node for member in self.members)

    def all_gather(self, topic: str, value: Any) -> list[Any]:
        """Return the values that all processes passed for `topic`, in rank order. `value` must be JSON-serializable.

        Raises:
            ClusterError: when another process failed, exited or did not answer within the timeout.
        """
        if self._size == 1:
            return [value]
        assert self._connection is not None, "the channel is closed"
        # A failed send shows up as a missing answer.
        self._connection.send(encode(Value(topic=topic, value=value)))
        answer = self._receive(topic, self._connection)
        if isinstance(answer, Failure):
            raise OtherProcessError(answer.reason, answer.exit_code)
        assert answer.topic == topic, f"expected {topic}, received {answer.topic}"
        return list(answer.values)

    def _connect(self, address: tuple[str, int]) -> None:
        start_s = time.monotonic()
        refused_since_s: float | None = None
        while True:
            try:
                self._connection = connect(
                    address, key=self._key, purpose=WORKERS, number=self._me.rank, max_bytes=MAX_ANSWER_BYTES
                )
                return
            except RefusedError as refusal:
                now_s = time.monotonic()
                refused_since_s = now_s if refused_since_s is None else refused_since_s
                if now_s - refused_since_s > min(REFUSED_LIMIT_S, self._timeout_s):
                    raise MissingProcessError(
                        f"{self._me}: rank 0 at {address[0]}:{address[1]} refuses this process ({refusal}): the nodes "
                        "have different job secrets, or another program listens there"
                    ) from None
            except OSError as error:
                refused_since_s = None
                if time.monotonic() - start_s > self._timeout_s:
                    raise MissingProcessError(
                        f"{self._me}: cannot reach rank 0 at {address[0]}:{address[1]} within {self._timeout_s:.0f} s "
                        f"({error}); is node 0 up, and is this port open between the nodes?"
                    ) from None
            time.sleep(RETRY_S)

    def _receive(self, topic: str, connection: Connection) -> Values | Failure:
        deadline = time.monotonic() + self._timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            connection.socket.settimeout(left_s)
            payloads = connection.receive()
            if payloads is None:
                raise MissingProcessError(self._explain_end())
            if payloads:
                # At most one answer is pending. The next all_gather also returns any failure that follows it.
                try:
                    answer: Values | Failure = decode(payloads[-1], (Values, Failure))
                    return answer
                except InvalidRecord as error:
                    raise MissingProcessError(f"{self._me}: rank 0 sent an invalid message ({error})") from None
        raise MissingProcessError(
            f"{self._me}: not all {self._size} processes reached the check {topic!r} within {self._timeout_s:.0f} s; "
            f"check the logs of the other nodes{self._describe_refusals()}"
        )

    def _explain_end(self) -> str:
        """Return why the connection to rank 0 ended."""
        if self._gather_server is None:
            return "rank 0 ended; see its log for the cause"
        self._gather_server.join(LINGER_S)
        error = self._gather_server.error
        return f"the job channel of rank 0 failed: {type(error).__name__}: {error}"

    def _describe_refusals(self) -> str:
        if self._gather_server is None or not self._gather_server.num_refused:
            return ""
        return f" (refused connections without the job's secret: {self._gather_server.num_refused})"


class OtherProcessError(ClusterError):
    """Another process of the job failed. The message and exit code come from that process."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class MissingProcessError(ClusterError):
    """A process did not connect, did not answer or ended without reporting an error."""

    exit_code = EXIT_FAILURE


def join_job(rank: int, size: int, environ: Mapping[str, str] = os.environ) -> JobChannel:
    """Return a launched job's channel, based on the environment variables set by the launcher and msrun.

    Raises ClusterError when there are several processes and the key is missing or cannot be read.
    """
    node = int(environ.get("ASCEND_CPT_NODE_RANK", "0"))
    if size == 1:
        return JobChannel(rank=rank, size=1, node=node, address=None)
    port = int(environ.get(CHANNEL_PORT_VARIABLE) or int(environ["MS_SCHED_PORT"]) + 1)
    host = environ.get(CHANNEL_HOST_VARIABLE) or environ["MS_SCHED_HOST"]
    timeout_s = float(environ.get("MS_TOPO_TIMEOUT") or TIMEOUT_S)
    key = _read_key(environ)
    return JobChannel(rank=rank, size=size, node=node, address=(host, port), key=key, timeout_s=timeout_s)


def _read_key(environ: Mapping[str, str]) -> bytes:
    """Return the key that the launcher left for its workers.

    Raises:
        ClusterError: when the workers were started without the launcher.
    """
    if path := environ.get(CHANNEL_KEY_VARIABLE):
        return read_secret_file(Path(path))
    if environ.get(INSECURE_VARIABLE) == "1":
        return derive_key(INSECURE_SECRET, WORKERS).hex().encode()
    raise ClusterError(
        "this process is one of several but has no job key; start it with scripts/msrun_launcher.sh, or with "
        f"{INSECURE_VARIABLE}=1 on a network that only you can reach"
    )
