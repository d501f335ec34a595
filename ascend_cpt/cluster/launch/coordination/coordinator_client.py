"""The launcher's client of the coordinator: when an attempt starts, when it is cancelled, and whether to restart."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.coordination.coordinator import SHUTDOWN_TIMEOUT_S, Coordinator
from ascend_cpt.cluster.launch.coordination.restart_policy import End, Outcome, RestartDecision, RestartPolicy
from ascend_cpt.cluster.launch.signals import StopRequests, name_signal
from ascend_cpt.cluster.launch.terminal import print_status
from ascend_cpt.cluster.messages import HEARTBEAT_S, HEARTBEAT_TIMEOUT_S, SEND_TIMEOUT_S, Connection, Message
from ascend_cpt.errors import EXIT_FAILURE, ClusterError

RETRY_S = 0.5
POLL_S = 0.1
# Print a notice when joining takes longer than this.
WAIT_NOTICE_S = 10.0
LOST = "lost"


class CoordinatorClient(Protocol):
    """Interface between a launcher's attempt loop and the coordination of all nodes."""

    def join(self) -> RestartDecision | None:
        """Wait until all nodes can start the next attempt and return None, or a decision when the job is over."""

    def is_cancelled(self) -> bool:
        """Return whether another node ended the running attempt; print the cause once."""

    def announce_stop(self, number: int) -> None:
        """Notify the other nodes that this node received a stop signal."""

    def report(self, outcome: Outcome) -> RestartDecision:
        """Report how the attempt ended on this node and return the decision."""


@contextmanager
def open_coordinator_client(settings: LaunchSettings, requests: StopRequests) -> Iterator[CoordinatorClient]:
    """Yield the coordination client of a job; with several nodes, node 0 also runs the coordinator."""
    policy = RestartPolicy(settings.max_restarts, settings.restart_delay_s)
    if settings.num_nodes == 1:
        yield SingleNodeClient(policy)
        return
    coordinator = Coordinator(settings, policy) if settings.node_rank == 0 else None
    if coordinator:
        coordinator.start()
    client = RemoteCoordinatorClient(settings, requests)
    try:
        yield client
    finally:
        client.close()
        if coordinator:
            coordinator.close()


class SingleNodeClient:
    """The client of a single-node job, which needs no coordinator."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy

    def join(self) -> RestartDecision | None:
        return None

    def is_cancelled(self) -> bool:
        return False

    def announce_stop(self, number: int) -> None:
        pass

    def report(self, outcome: Outcome) -> RestartDecision:
        return self._policy.decide(outcome)


class RemoteCoordinatorClient:
    """The connection to the coordinator on node 0. `join` opens it and reconnects when it is lost."""

    def __init__(self, settings: LaunchSettings, requests: StopRequests) -> None:
        self._settings, self._requests = settings, requests
        host = "127.0.0.1" if settings.node_rank == 0 else settings.master_addr.strip("[]")
        self._address = (host, settings.launcher_port)
        self._receiver: _Receiver | None = None
        self._num_restarts = 0
        self._num_attempts = 0
        self._is_cancelled = False

    def join(self) -> RestartDecision | None:
        """Join the next attempt, reconnecting as needed, and wait until all nodes have joined.

        Raises:
            ClusterError: when the coordinator rejects this node.
        """
        settings = self._settings
        limit_s = settings.rejoin_timeout_s if self._num_attempts else settings.cluster_timeout_s
        start_s = time.monotonic()
        deadline_s = start_s + limit_s
        self._is_cancelled = has_joined = has_printed_notice = False
        # Node 0 has the same deadline and names the missing nodes; allow time for its answer.
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
            if message["kind"] == "go":
                for warning in message["warnings"]:
                    print_status(f"warning: {warning}")
                self._num_attempts += 1
                return None
            if message["kind"] == "decision":
                return _to_decision(message)
            if message["kind"] == "refused":
                raise ClusterError(message["message"])
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
        while not self._is_cancelled and (message := self._next_message(0))["kind"] != "none":
            if message["kind"] == "cancel":
                _print_cause(message)
                self._is_cancelled = True
            elif message["kind"] == LOST:
                print_status("lost the connection to node 0: its launcher was killed, or the network is down")
                self._is_cancelled = True
            else:
                self._handle_signal(message)
        return self._is_cancelled

    def announce_stop(self, number: int) -> None:
        if self._receiver:
            self._receiver.connection.send(kind="signal", number=number)

    def report(self, outcome: Outcome) -> RestartDecision:
        """Report the outcome and wait for the decision. A stopped node does not wait."""
        if self._receiver:
            self._receiver.connection.send(kind="ended", outcome=outcome.to_json())
        while outcome.end is not End.STOPPED and self._receiver:
            message = self._next_message(POLL_S)
            if message["kind"] == "decision":
                decision = _to_decision(message)
                self._num_restarts += decision.again
                return decision
            self._handle_signal(message)
            if message["kind"] == "cancel" and outcome.end is End.DONE:
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
        """Decide without node 0 when the connection to it is lost, by the rules node 0 applies to other lost nodes."""
        if self._num_restarts >= self._settings.max_restarts:
            return RestartDecision(
                again=False, code=outcome.code or EXIT_FAILURE, message="node 0 was lost before the job ended"
            )
        self._num_restarts += 1
        return RestartDecision(
            again=True,
            message=f"waiting up to {self._settings.rejoin_timeout_s} s for node 0; then restart "
            f"{self._num_restarts} of {self._settings.max_restarts}",
        )

    def _connect(self) -> bool:
        try:
            connection = Connection(socket.create_connection(self._address, timeout=SEND_TIMEOUT_S))
        except OSError:
            return False
        self._receiver = _Receiver(connection)
        self._receiver.start()
        return True

    def _join(self) -> bool:
        assert self._receiver is not None
        return self._receiver.connection.send(
            kind="join",
            node=self._settings.node_rank,
            host=socket.gethostname(),
            size=[self._settings.num_workers, self._settings.num_nodes],
            num_restarts=self._num_restarts,
            time_s=time.time(),
        )

    def _next_message(self, limit_s: float) -> Message:
        """Return the next message; kind "none" when none arrived within the limit, "lost" when disconnected."""
        if self._receiver is None:
            return {"kind": "none"}
        try:
            message = self._receiver.messages.get(timeout=limit_s) if limit_s else self._receiver.messages.get_nowait()
        except queue.Empty:
            return {"kind": "none"}
        if message["kind"] == LOST:
            self.close()
        return message

    def _handle_signal(self, message: Message) -> None:
        if message["kind"] == "signal":
            print_status(f"{name_signal(message['number'])} on {message['by']}: stopping the job")
            self._requests.add(message["number"])


class _Receiver(threading.Thread):
    """Receives the coordinator's messages and sends heartbeats, independently of the main thread."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(daemon=True, name="connection to node 0")
        self.connection = connection
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        connection.socket.settimeout(HEARTBEAT_S)

    def run(self) -> None:
        last_received_s = time.monotonic()
        while (messages := self.connection.receive()) is not None:
            now_s = time.monotonic()
            if messages:
                last_received_s = now_s
            elif now_s - last_received_s > HEARTBEAT_TIMEOUT_S:
                break
            self.connection.send(kind="heartbeat")
            for message in messages:
                if message.get("kind") != "heartbeat":
                    self.messages.put(message)
        self.messages.put({"kind": LOST})

    def close(self) -> None:
        self.connection.close()


def _to_decision(message: Message) -> RestartDecision:
    return RestartDecision(**{name: value for name, value in message.items() if name != "kind"})


def _print_cause(message: Message) -> None:
    print_status("\n".join([*message["lines"], message["reason"]]))
