"""How one node's launcher learns when an attempt starts, when it must end, and whether another follows."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.coordination.coordinator import FAREWELL_S, Coordinator
from ascend_cpt.cluster.launch.coordination.restart_policy import End, Outcome, RestartDecision, RestartPolicy
from ascend_cpt.cluster.launch.signals import StopRequests, name_signal
from ascend_cpt.cluster.launch.terminal import say
from ascend_cpt.cluster.messages import BEAT_S, SEND_TIMEOUT_S, SILENCE_S, Connection, Message
from ascend_cpt.errors import EXIT_FAILURE, ClusterError

RETRY_S = 0.5
POLL_S = 0.1
# A wait that is longer than this is told.
PATIENCE_S = 10.0
LOST = "lost"


class CoordinatorClient(Protocol):
    """What a launcher asks between and during attempts."""

    def join(self) -> RestartDecision | None:
        """Wait until every node may start the next attempt; return a verdict instead when the job is over."""

    def is_cancelled(self) -> bool:
        """Tell whether the running attempt must end because of another node, and say so once."""

    def announce_stop(self, number: int) -> None:
        """Tell the other nodes that this one was asked to stop."""

    def report(self, outcome: Outcome) -> RestartDecision:
        """Report how this node's part ended and return what follows."""


@contextmanager
def open_coordinator_client(settings: LaunchSettings, requests: StopRequests) -> Iterator[CoordinatorClient]:
    """Give the council of a job; with several nodes, node 0 serves the others meanwhile."""
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
    """One node decides for itself."""

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
    """This node's line to node 0's hub. `gather` opens it, and opens it again when it broke."""

    def __init__(self, settings: LaunchSettings, requests: StopRequests) -> None:
        self._settings, self._requests = settings, requests
        host = "127.0.0.1" if settings.node_rank == 0 else settings.master_addr.strip("[]")
        self._address = (host, settings.launcher_port)
        self._receiver: _Receiver | None = None
        self._num_restarts = 0
        self._num_attempts = 0
        self._is_cancelled = False

    def join(self) -> RestartDecision | None:
        """Join the next attempt, again after every broken line, until all nodes have come.

        Raises:
            ClusterError: when node 0 does not take this node.
        """
        settings = self._settings
        limit_s = settings.rejoin_timeout_s if self._num_attempts else settings.cluster_timeout_s
        begin_s = time.monotonic()
        deadline_s = begin_s + limit_s
        self._is_cancelled = has_joined = has_told = False
        # Node 0 keeps the same time and names who is missing; a moment more for its answer.
        while time.monotonic() < deadline_s + FAREWELL_S and not self._requests.received:
            if not has_told and time.monotonic() > begin_s + PATIENCE_S:
                say(f"waiting up to {limit_s} s for all {settings.num_nodes} nodes to join")
                has_told = True
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
                    say(f"warning: {warning}")
                self._num_attempts += 1
                return None
            if message["kind"] == "verdict":
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
            message=f"error: node 0's launcher did not answer at {host}:{port} within {limit_s} s; is it started, and "
            f"are ports {settings.master_port} to {port} open between the nodes?",
        )

    def is_cancelled(self) -> bool:
        while not self._is_cancelled and (message := self._next_message(0))["kind"] != "none":
            if message["kind"] == "cancel":
                _tell_cause(message)
                self._is_cancelled = True
            elif message["kind"] == LOST:
                say("node 0 is lost: its launcher was killed, or the network is broken")
                self._is_cancelled = True
            else:
                self._take_signal(message)
        return self._is_cancelled

    def announce_stop(self, number: int) -> None:
        if self._receiver:
            self._receiver.connection.send(kind="signal", number=number)

    def report(self, outcome: Outcome) -> RestartDecision:
        """Report, and wait for the verdict: it comes when all nodes have ended. A stopped node does not wait."""
        if self._receiver:
            self._receiver.connection.send(kind="ended", outcome=outcome.to_json())
        while outcome.end is not End.STOPPED and self._receiver:
            message = self._next_message(POLL_S)
            if message["kind"] == "verdict":
                decision = _to_decision(message)
                self._num_restarts += decision.again
                return decision
            self._take_signal(message)
            if message["kind"] == "cancel" and outcome.end is End.DONE:
                _tell_cause(message)
            if self._requests.received:
                self.announce_stop(self._requests.received[0])
                return RestartDecision(again=False, code=128 + self._requests.received[0])
        if outcome.end in (End.STOPPED, End.FINAL):
            return RestartDecision(again=False, code=outcome.code)
        return self._decide_alone(outcome)

    def close(self) -> None:
        """Leave."""
        if self._receiver:
            self._receiver.close()
            self._receiver = None

    def _decide_alone(self, outcome: Outcome) -> RestartDecision:
        """Return what follows when node 0, which decides, is lost: the same as it would decide of a lost node."""
        if self._num_restarts >= self._settings.max_restarts:
            return RestartDecision(
                again=False, code=outcome.code or EXIT_FAILURE, message="node 0 was lost before the job's end"
            )
        self._num_restarts += 1
        return RestartDecision(
            again=True,
            message=f"restart {self._num_restarts} of {self._settings.max_restarts} when node 0 is back, within "
            f"{self._settings.rejoin_timeout_s} s",
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
        """Return the next message; of kind "none" when there is none within the time, "lost" when the line is."""
        if self._receiver is None:
            return {"kind": "none"}
        try:
            message = self._receiver.messages.get(timeout=limit_s) if limit_s else self._receiver.messages.get_nowait()
        except queue.Empty:
            return {"kind": "none"}
        if message["kind"] == LOST:
            self.close()
        return message

    def _take_signal(self, message: Message) -> None:
        if message["kind"] == "signal":
            say(f"{name_signal(message['number'])} on {message['by']}: the job stops")
            self._requests.add(message["number"])


class _Receiver(threading.Thread):
    """Reads what the hub says and keeps saying that this launcher is there, whatever the main thread does."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(daemon=True, name="line to node 0")
        self.connection = connection
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        connection.socket.settimeout(BEAT_S)

    def run(self) -> None:
        heard_s = time.monotonic()
        while (messages := self.connection.receive()) is not None:
            now_s = time.monotonic()
            if messages:
                heard_s = now_s
            elif now_s - heard_s > SILENCE_S:
                break
            self.connection.send(kind="beat")
            for message in messages:
                if message.get("kind") != "beat":
                    self.messages.put(message)
        self.messages.put({"kind": LOST})

    def close(self) -> None:
        self.connection.close()


def _to_decision(message: Message) -> RestartDecision:
    return RestartDecision(**{name: value for name, value in message.items() if name != "kind"})


def _tell_cause(message: Message) -> None:
    say("\n".join([*message["lines"], message["reason"]]))
