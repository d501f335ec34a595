"""The launcher's coordinator client: learns when an attempt starts or is cancelled, and whether to restart."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.coordination.coordinator import SHUTDOWN_TIMEOUT_S, Coordinator
from ascend_cpt.cluster.launch.coordination.records import (
    FROM_COORDINATOR,
    Cancel,
    Decision,
    Ended,
    FromCoordinator,
    Go,
    Heartbeat,
    Join,
    Refused,
    Stop,
    StopBy,
    write_outcome,
)
from ascend_cpt.cluster.launch.coordination.restart_policy import (
    MAX_CAUSE_CHARACTERS,
    End,
    Outcome,
    RestartDecision,
    RestartPolicy,
    add_cause,
)
from ascend_cpt.cluster.launch.signals import StopRequests, name_signal
from ascend_cpt.cluster.launch.terminal import print_status
from ascend_cpt.cluster.messages.connection import REFUSED_LIMIT_S, Connection, RefusedError, connect
from ascend_cpt.cluster.messages.ports import HEARTBEAT_S, HEARTBEAT_TIMEOUT_S
from ascend_cpt.cluster.messages.records import InvalidRecord, decode, encode
from ascend_cpt.cluster.messages.secret import LAUNCHERS
from ascend_cpt.errors import EXIT_FAILURE, ClusterError

RETRY_S = 0.5
POLL_S = 0.1
# Print a notice if joining takes longer than this.
WAIT_NOTICE_S = 10.0
LOST_NODE_0 = "lost the connection to node 0: its launcher was killed, or the network is down"


class Lost:
    """Stands in for a message when the connection is lost."""


Received = FromCoordinator | Lost


class CoordinatorClient(Protocol):
    """The interface between a launcher's attempt loop and the coordination across nodes."""

    @property
    def cause(self) -> str:
        """Why the attempt before the one that `join` allowed was interrupted, or "" if it was not."""

    def join(self) -> RestartDecision | None:
        """Wait until all nodes can start the next attempt and return None, or a decision when the job is over."""

    def is_cancelled(self) -> bool:
        """Return whether another node ended the running attempt. Print the cause once."""

    def announce_stop(self, number: int) -> None:
        """Notify the other nodes that this node received a stop signal."""

    def report(self, outcome: Outcome) -> RestartDecision:
        """Report how the attempt ended on this node and return the decision."""


@contextmanager
def open_coordinator_client(
    settings: LaunchSettings, requests: StopRequests, key: bytes, *, cause: str = ""
) -> Iterator[CoordinatorClient]:
    """Yield a job's coordination client. With several nodes, node 0 also runs the coordinator.

    `cause` is why the last attempt of an earlier launch on this node was interrupted.

    Raises ClusterError when node 0 cannot listen.
    """
    policy = RestartPolicy(settings.max_restarts, settings.restart_delay_s)
    if settings.num_nodes == 1:
        yield SingleNodeClient(policy, cause)
        return
    runner = _CoordinatorRunner(settings, policy, key) if settings.node_rank == 0 else None
    ensure = runner.ensure if runner else None
    client = RemoteCoordinatorClient(settings, requests, key, ensure_coordinator=ensure, cause=cause)
    try:
        yield client
    finally:
        client.close()
        if runner:
            runner.coordinator.close()


class _CoordinatorRunner:
    """Runs the coordinator on node 0, and starts a new one if it fails."""

    def __init__(self, settings: LaunchSettings, policy: RestartPolicy, key: bytes) -> None:
        self._settings, self._policy, self._key = settings, policy, key
        self.coordinator = self._start()

    def _start(self) -> Coordinator:
        coordinator = Coordinator(self._settings, self._policy, self._key)
        coordinator.start()
        return coordinator

    def ensure(self) -> None:
        """Start a new coordinator if the last one failed."""
        if self.coordinator.is_alive() or not self.coordinator.failure:
            return
        failure = self.coordinator.failure
        print_status(f"the coordinator failed ({type(failure).__name__}: {failure}) and is being restarted")
        self.coordinator = self._start()


class SingleNodeClient:
    """The client of a single-node job, which needs no coordinator."""

    def __init__(self, policy: RestartPolicy, cause: str = "") -> None:
        self._policy = policy
        self.cause = cause

    def join(self) -> RestartDecision | None:
        return None

    def is_cancelled(self) -> bool:
        return False

    def announce_stop(self, number: int) -> None:
        pass

    def report(self, outcome: Outcome) -> RestartDecision:
        self.cause = add_cause(self.cause, outcome, outcome.cause)
        return self._policy.decide(outcome)


class RemoteCoordinatorClient:
    """The connection to the coordinator on node 0. `join` opens the connection and reconnects if it is lost."""

    def __init__(
        self,
        settings: LaunchSettings,
        requests: StopRequests,
        key: bytes,
        ensure_coordinator: Callable[[], None] | None = None,
        cause: str = "",
    ) -> None:
        self._settings, self._requests, self._key = settings, requests, key
        self._ensure_coordinator = ensure_coordinator
        self._address = (settings.master_addr, settings.launcher_port)
        self._receiver: _Receiver | None = None
        self._refused_since_s: float | None = None
        self._num_restarts = 0
        self._num_attempts = 0
        self._is_cancelled = False
        self.cause = ""
        self._own_cause = cause

    def join(self) -> RestartDecision | None:
        """Join the next attempt, reconnecting as needed, and wait until all nodes have joined.

        Raises:
            ClusterError: when the coordinator rejects this node or has a different secret.
        """
        settings = self._settings
        limit_s = settings.rejoin_timeout_s if self._num_attempts else settings.cluster_timeout_s
        start_s = time.monotonic()
        deadline_s = start_s + limit_s
        self._is_cancelled = has_joined = has_printed_notice = False
        # Node 0 has the same deadline and names the missing nodes, so allow time for its answer.
        while time.monotonic() < deadline_s + SHUTDOWN_TIMEOUT_S and not self._requests.received:
            if not has_printed_notice and time.monotonic() > start_s + WAIT_NOTICE_S:
                print_status(f"waiting up to {limit_s} s for all {settings.num_nodes} nodes to join")
                has_printed_notice = True
            if self._receiver is None:
                has_joined = self._connect() and self._join()
                if not has_joined:
                    time.sleep(RETRY_S)
                    continue
            elif not has_joined:
                has_joined = self._join()
            message = self._next_message(POLL_S)
            if isinstance(message, Go):
                for warning in message.warnings:
                    print_status(f"warning: {warning}")
                self._num_attempts += 1
                self.cause, self._own_cause = message.cause, ""
                return None
            if isinstance(message, Decision):
                return message.to_decision()
            if isinstance(message, Refused):
                raise ClusterError(message.message)
        if self._requests.received:
            if self._num_attempts:
                self.announce_stop(self._requests.received[0])
            return RestartDecision(again=False, code=128 + self._requests.received[0])
        host, port = self._address
        return RestartDecision(
            again=False,
            code=EXIT_FAILURE,
            message=f"error: node 0's launcher did not answer at {host}:{port} within {limit_s} s; is it running, and "
            f"are ports {settings.master_port} to {port} open between the nodes?",
        )

    def is_cancelled(self) -> bool:
        while not self._is_cancelled and (message := self._next_message(0)):
            if isinstance(message, Cancel):
                _print_cause(message)
                self._is_cancelled = True
            elif isinstance(message, Lost):
                print_status(LOST_NODE_0)
                self._is_cancelled = True
            else:
                self._handle_signal(message)
        return self._is_cancelled

    def announce_stop(self, number: int) -> None:
        if self._receiver:
            self._receiver.connection.send(encode(Stop(number=number)))

    def report(self, outcome: Outcome) -> RestartDecision:
        """Report the outcome and wait for the decision. A stopped node does not wait."""
        if self._receiver:
            self._receiver.connection.send(encode(Ended(outcome=write_outcome(outcome))))
        while outcome.end is not End.STOPPED and self._receiver:
            message = self._next_message(POLL_S)
            if isinstance(message, Decision):
                decision = message.to_decision()
                self._num_restarts += decision.again and outcome.end is not End.CONTINUES
                return decision
            self._handle_signal(message)
            if isinstance(message, Cancel) and outcome.end in (End.DONE, End.CONTINUES):
                _print_cause(message)
            if self._requests.received:
                self.announce_stop(self._requests.received[0])
                return RestartDecision(again=False, code=128 + self._requests.received[0])
        if outcome.end in (End.STOPPED, End.FINAL):
            return RestartDecision(again=False, code=outcome.code)
        return self._decide_alone(outcome)

    def close(self) -> None:
        """Disconnect."""
        if self._receiver:
            self._receiver.close()
            self._receiver = None

    def _decide_alone(self, outcome: Outcome) -> RestartDecision:
        """Decide without node 0 if the connection is lost, using the same rules as node 0 for other lost nodes."""
        if self._num_restarts >= self._settings.max_restarts:
            return RestartDecision(
                again=False, code=outcome.code or EXIT_FAILURE, message="node 0 was lost before the job ended"
            )
        self._num_restarts += 1
        self._own_cause = outcome.cause or LOST_NODE_0
        return RestartDecision(
            again=True,
            message=f"waiting up to {self._settings.rejoin_timeout_s} s for node 0; then restart "
            f"{self._num_restarts} of {self._settings.max_restarts}",
        )

    def _connect(self) -> bool:
        if self._ensure_coordinator:
            self._ensure_coordinator()
        try:
            connection = connect(self._address, key=self._key, purpose=LAUNCHERS, number=self._settings.node_rank)
        except RefusedError as error:
            self._check_refusal(error)
            return False
        except OSError:
            return False
        self._refused_since_s = None
        self._receiver = _Receiver(connection)
        self._receiver.start()
        return True

    def _check_refusal(self, error: RefusedError) -> None:
        """Report a wrong secret before the first attempt. Later, the secret is known to be right, so try again."""
        now_s = time.monotonic()
        if self._refused_since_s is None:
            self._refused_since_s = now_s
        if self._num_attempts == 0 and now_s - self._refused_since_s > REFUSED_LIMIT_S:
            host, port = self._address
            raise ClusterError(
                f"{host}:{port} refuses this node ({error}): the nodes have different job secrets, or another program "
                "listens there; put the same secret on all nodes"
            )

    def _join(self) -> bool:
        assert self._receiver is not None
        join = Join(
            size=(self._settings.num_workers, self._settings.num_nodes),
            host=socket.gethostname(),
            num_restarts=self._num_restarts,
            time_s=time.time(),
            cause=self._own_cause[:MAX_CAUSE_CHARACTERS],
        )
        return self._receiver.connection.send(encode(join))

    def _next_message(self, limit_s: float) -> Received | None:
        """Return the next message, `Lost` if disconnected, or None if no message arrived within the limit."""
        if self._receiver is None:
            return None
        try:
            message = self._receiver.messages.get(timeout=limit_s) if limit_s else self._receiver.messages.get_nowait()
        except queue.Empty:
            return None
        if isinstance(message, Lost):
            self.close()
        return message

    def _handle_signal(self, message: Received | None) -> None:
        if isinstance(message, StopBy):
            print_status(f"{name_signal(message.number)} on {message.by}: stopping the job")
            self._requests.add(message.number)


class _Receiver(threading.Thread):
    """Receives the coordinator's messages and sends heartbeats independently of the main thread."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(daemon=True, name="connection to node 0")
        self.connection = connection
        self.messages: queue.SimpleQueue[Received] = queue.SimpleQueue()
        connection.socket.settimeout(HEARTBEAT_S)

    def run(self) -> None:
        """Receive until the connection is lost, whatever the reason."""
        try:
            self._receive()
        finally:
            self.messages.put(Lost())

    def _receive(self) -> None:
        last_received_s = time.monotonic()
        while (payloads := self.connection.receive()) is not None:
            now_s = time.monotonic()
            if payloads:
                last_received_s = now_s
            elif now_s - last_received_s > HEARTBEAT_TIMEOUT_S:
                return
            self.connection.send(encode(Heartbeat()))
            try:
                messages = [decode(payload, FROM_COORDINATOR) for payload in payloads]
            except InvalidRecord:
                return
            for message in messages:
                if not isinstance(message, Heartbeat):
                    self.messages.put(message)

    def close(self) -> None:
        self.connection.close()


def _print_cause(message: Cancel) -> None:
    print_status("\n".join([*message.lines, message.reason]))
