"""The coordinator on node 0: starts and ends the attempts of a job on all nodes together.

A node joins an attempt only when no process of an earlier attempt runs on it, so attempts never overlap.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, field

from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.coordination.restart_policy import End, Outcome, RestartDecision, RestartPolicy
from ascend_cpt.cluster.launch.signals import name_signal
from ascend_cpt.cluster.messages import (
    HEARTBEAT_S,
    HEARTBEAT_TIMEOUT_S,
    LAUNCHER_PORT_OFFSET,
    LAUNCHER_PORT_VARIABLE,
    Connection,
    LineServer,
    Message,
)
from ascend_cpt.errors import EXIT_FAILURE, ClusterError

# A joining launcher may take over a node rank when nothing was received from its holder for this long.
RANK_HOLD_S = 3 * HEARTBEAT_S
SHUTDOWN_TIMEOUT_S = 5.0
POLL_S = 0.2
# Larger differences put log lines and file times on shared storage out of order.
MAX_CLOCK_SKEW_S = 5.0


@dataclass(kw_only=True, eq=False)
class _Peer:
    connection: Connection
    node: int | None = None
    host: str = "?"
    last_received_s: float = field(default_factory=time.monotonic)
    clock_skew_s: float = 0.0

    def __str__(self) -> str:
        return f"node {self.node} ({self.host})"


class Coordinator(threading.Thread):
    """Serves the launchers of all nodes, including node 0's own, until the job ends."""

    def __init__(self, settings: LaunchSettings, policy: RestartPolicy) -> None:
        super().__init__(daemon=True, name="coordinator")
        self._settings, self._policy = settings, policy
        try:
            self._server = LineServer(settings.launcher_port, backlog=1024)
        except OSError as error:
            raise ClusterError(
                f"port {settings.launcher_port} (MASTER_PORT + {LAUNCHER_PORT_OFFSET}, used by the coordinator): "
                f"{error.strerror}; choose another MASTER_PORT, or set {LAUNCHER_PORT_VARIABLE} on every node"
            ) from error
        self._by_connection: dict[Connection, _Peer] = {}
        self._joined: dict[int, _Peer] = {}
        self._active: dict[int, _Peer] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._hosts: dict[int, str] = {}
        self._num_attempts = 0
        self._is_stopping = False
        self._is_over = False
        self._deadline_s = time.monotonic() + settings.cluster_timeout_s

    def run(self) -> None:
        """Serve until the final decision; then wait for all launchers to disconnect, up to the shutdown timeout."""
        last_heartbeat_s = 0.0
        while not self._is_over or (self._peers and time.monotonic() < self._deadline_s):
            for connection, messages in self._server.poll(POLL_S):
                self._read(self._by_connection.setdefault(connection, _Peer(connection=connection)), messages)
            now_s = time.monotonic()
            if now_s - last_heartbeat_s > HEARTBEAT_S:
                last_heartbeat_s = now_s
                self._send_heartbeats(now_s)
            if not self._is_over and not self._active and now_s > self._deadline_s:
                self._time_out()
        self._by_connection.clear()
        self._server.close()

    def close(self) -> None:
        """Stop serving; after the final decision, wait for the others to receive it."""
        if not self._is_over:
            self._is_over, self._deadline_s = True, 0.0
        self.join(SHUTDOWN_TIMEOUT_S + 1)

    @property
    def _peers(self) -> list[_Peer]:
        return list(self._by_connection.values())

    def _send_heartbeats(self, now_s: float) -> None:
        for peer in self._peers:
            peer.connection.send(kind="heartbeat")
            if now_s - peer.last_received_s > HEARTBEAT_TIMEOUT_S:
                self._mark_lost(
                    peer, f"sent no heartbeat for {HEARTBEAT_TIMEOUT_S:.0f} s: the node or the network is down"
                )

    def _read(self, peer: _Peer, messages: list[Message] | None) -> None:
        if messages is None:
            self._mark_lost(peer, "disconnected: its launcher was killed or the node is down")
            return
        peer.last_received_s = time.monotonic()
        try:
            for message in messages:
                self._handle(peer, message)
        except (KeyError, TypeError, ValueError):
            self._mark_lost(peer, "sent an invalid message")

    def _handle(self, peer: _Peer, message: Message) -> None:
        kind = message["kind"]
        if kind == "join":
            self._join(peer, message)
        elif kind == "ended" and peer.node in self._active:
            self._end(peer, Outcome.from_json(message["outcome"]))
        elif kind == "signal" and peer.node is not None:
            self._forward_signal(peer, int(message["number"]))

    def _join(self, peer: _Peer, message: Message) -> None:
        node, size = message["node"], message["size"]
        expected = [self._settings.num_workers, self._settings.num_nodes]
        holder = next((other for other in self._peers if other.node == node and other is not peer), None)
        master = f"{self._settings.master_addr}:{self._settings.master_port}"
        if size != expected:
            peer.connection.send(
                kind="refused",
                message=f"node {node} was started for {size[0]} workers on {size[1]} nodes, but node 0 for "
                f"{expected[0]} on {expected[1]}; start all nodes with the same WORKER_NUM and LOCAL_WORKER",
            )
            return
        if holder and time.monotonic() - holder.last_received_s < RANK_HOLD_S:
            peer.connection.send(
                kind="refused",
                message=f"NODE_RANK {node} is taken: another node registered the same workers at {master}; "
                "give each node its own NODE_RANK, and each job its own MASTER_PORT",
            )
            return
        if holder:
            self._mark_lost(holder, "stopped sending heartbeats, and its launcher was restarted")
        peer.node, peer.host, peer.clock_skew_s = node, message["host"], message["time_s"] - time.time()
        self._hosts[node] = peer.host
        self._policy.count_earlier(message["num_restarts"])
        self._joined[node] = peer
        self._start_when_complete()

    def _start_when_complete(self) -> None:
        if self._is_over or self._active or len(self._joined) < self._settings.num_nodes:
            return
        self._active, self._joined, self._outcomes = self._joined, {}, {}
        self._num_attempts += 1
        warnings = [
            f"the clock of {peer} differs by {peer.clock_skew_s:+.0f} s from node 0's; synchronize both with NTP"
            for peer in self._active.values()
            if abs(peer.clock_skew_s) > MAX_CLOCK_SKEW_S
        ]
        for peer in self._active.values():
            peer.connection.send(kind="go", warnings=warnings)

    def _end(self, peer: _Peer, outcome: Outcome) -> None:
        assert peer.node is not None
        self._outcomes[peer.node] = outcome
        if outcome.end in (End.FAILED, End.KILLED, End.FINAL) and not self._is_stopping:
            self._cancel_others(str(peer), outcome)
        if len(self._outcomes) == len(self._active):
            self._decide()

    def _cancel_others(self, name: str, outcome: Outcome) -> None:
        for node, peer in self._active.items():
            # Nodes that have ended already print why they have to wait.
            if self._outcomes.get(node) is not outcome:
                peer.connection.send(kind="cancel", reason=f"{name}: {outcome.reason}", lines=outcome.lines)

    def _decide(self) -> None:
        outcomes = self._outcomes.values()
        root = min(outcomes, key=lambda outcome: _CAUSE_PRIORITY[outcome.end])
        steps = [outcome.step for outcome in outcomes if outcome.step is not None]
        root = Outcome(end=root.end, code=root.code, reason=root.reason, step=max(steps, default=None))
        decision = self._policy.decide(root)
        peers, self._active = self._active.values(), {}
        if decision.again:
            self._deadline_s = time.monotonic() + decision.delay_s + self._settings.rejoin_timeout_s
        self._announce(list(peers), decision)
        self._start_when_complete()

    def _announce(self, peers: list[_Peer], decision: RestartDecision) -> None:
        for peer in peers:
            peer.connection.send(kind="decision", **asdict(decision))
        if not decision.again:
            self._is_over = True
            self._deadline_s = time.monotonic() + SHUTDOWN_TIMEOUT_S

    def _forward_signal(self, peer: _Peer, number: int) -> None:
        """Forward a stop signal received by one node, so that all nodes save and stop."""
        if not self._active:
            message = f"{name_signal(number)} on {peer}: stopping the job"
            # Nodes in their restart delay read it when they join.
            others = [other for other in self._peers if other.node is not None and other is not peer]
            self._announce(others, RestartDecision(again=False, code=128 + number, message=message))
            return
        self._is_stopping = True
        for other in self._active.values():
            if other is not peer:
                other.connection.send(kind="signal", number=number, by=str(peer))

    def _mark_lost(self, peer: _Peer, reason: str) -> None:
        self._drop(peer)
        if peer.node is None:
            return
        if self._joined.get(peer.node) is peer:
            del self._joined[peer.node]
        if self._active.get(peer.node) is peer and peer.node not in self._outcomes:
            end = End.STOPPED if self._is_stopping else End.KILLED
            self._end(peer, Outcome(end=end, code=EXIT_FAILURE, reason=reason))

    def _drop(self, peer: _Peer) -> None:
        del self._by_connection[peer.connection]
        self._server.drop(peer.connection)

    def _time_out(self) -> None:
        missing = [node for node in range(self._settings.num_nodes) if node not in self._joined]
        names = ", ".join(
            f"node {node} ({self._hosts[node]})" if node in self._hosts else f"node {node}" for node in missing
        )
        if self._num_attempts:
            message = (
                f"{names} did not rejoin within {self._settings.rejoin_timeout_s} s; start the job again to resume"
            )
        else:
            message = (
                f"the job's {self._settings.num_workers} workers did not all connect to {self._settings.master_addr}:"
                f"{self._settings.master_port} within {self._settings.cluster_timeout_s} s: {names} did not connect; "
                f"start all {self._settings.num_nodes} nodes with the same WORKER_NUM, MASTER_ADDR and MASTER_PORT, "
                "each with its own NODE_RANK"
            )
        decision = RestartDecision(again=False, code=EXIT_FAILURE, message=f"error: {message}")
        self._announce(list(self._joined.values()), decision)


# Priority of outcomes when choosing the root cause, lowest first. A killed process makes others fail, possibly with an
# error message of their own.
_CAUSE_PRIORITY = {End.STOPPED: 0, End.KILLED: 1, End.FINAL: 2, End.FAILED: 2, End.CANCELLED: 3, End.DONE: 4}
