"""The coordinator on node 0, which starts and ends a job's attempts on all nodes together.

A node joins an attempt only when no process from an earlier attempt runs on that node, so attempts never overlap.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.coordination.records import (
    FROM_LAUNCHER,
    Cancel,
    Decision,
    Ended,
    FromCoordinator,
    FromLauncher,
    Go,
    Heartbeat,
    Join,
    Refused,
    Stop,
    StopBy,
)
from ascend_cpt.cluster.launch.coordination.restart_policy import (
    End,
    Outcome,
    RestartDecision,
    RestartPolicy,
    add_cause,
)
from ascend_cpt.cluster.launch.signals import name_signal
from ascend_cpt.cluster.launch.terminal import print_status
from ascend_cpt.cluster.messages.peer import Peer
from ascend_cpt.cluster.messages.ports import (
    HEARTBEAT_S,
    HEARTBEAT_TIMEOUT_S,
    LAUNCHER_PORT_OFFSET,
    LAUNCHER_PORT_VARIABLE,
)
from ascend_cpt.cluster.messages.records import InvalidRecord, decode, encode
from ascend_cpt.cluster.messages.secret import LAUNCHERS
from ascend_cpt.cluster.messages.server import Server
from ascend_cpt.errors import EXIT_FAILURE, ClusterError

# A joining launcher may take over a node rank if nothing was received from the rank's holder for this long.
RANK_HOLD_S = 3 * HEARTBEAT_S
SHUTDOWN_TIMEOUT_S = 5.0
POLL_S = 0.2
# Larger differences put log lines and file times on shared storage out of order.
MAX_CLOCK_SKEW_S = 5.0
REFUSAL_NOTICE_S = 60.0
# The coordinator reports an unexpected error in its own code and continues, up to this many times.
MAX_ERRORS = 20


@dataclass(kw_only=True, eq=False)
class _Launcher:
    peer: Peer
    node: int | None = None
    host: str = "?"
    last_received_s: float = field(default_factory=time.monotonic)
    clock_skew_s: float = 0.0

    def __str__(self) -> str:
        return f"node {self.node} ({self.host})"


class Coordinator(threading.Thread):
    """Serves the launchers of all nodes, including node 0's own, until the job ends."""

    def __init__(self, settings: LaunchSettings, policy: RestartPolicy, key: bytes) -> None:
        super().__init__(daemon=True, name="coordinator")
        self._settings, self._policy = settings, policy
        try:
            self._server = Server(
                (settings.master_addr, settings.launcher_port), key=key, purpose=LAUNCHERS, size=settings.num_nodes
            )
        except OSError as error:
            raise ClusterError(
                f"port {settings.launcher_port} (MASTER_PORT + {LAUNCHER_PORT_OFFSET}, used by the coordinator): "
                f"{error.strerror}; choose another MASTER_PORT, or set {LAUNCHER_PORT_VARIABLE} on every node"
            ) from error
        self._by_peer: dict[Peer, _Launcher] = {}
        self._joined: dict[int, _Launcher] = {}
        self._active: dict[int, _Launcher] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._hosts: dict[int, str] = {}
        self._num_attempts = 0
        self._is_stopping = False
        self._is_over = False
        self._cause = self._last_cause = ""
        self._num_errors = 0
        self._last_heartbeat_s = 0.0
        self._next_notice_s = 0.0
        self._deadline_s = time.monotonic() + settings.cluster_timeout_s
        self.failure: Exception | None = None
        """The error that ended the coordinator before the job, None while there is none."""

    def run(self) -> None:
        """Serve until the final decision, then wait up to the shutdown timeout for all launchers to disconnect.

        If the coordinator fails, it closes all connections so that every launcher notices at once.
        """
        try:
            while not self._is_over or (self._by_peer and time.monotonic() < self._deadline_s):
                try:
                    self._serve_once()
                except Exception as error:
                    self._num_errors += 1
                    print_status(f"warning: the coordinator continues after an error: {type(error).__name__}: {error}")
                    if self._num_errors > MAX_ERRORS:
                        raise
        except Exception as error:
            self.failure = error
        finally:
            self._by_peer.clear()
            self._server.close()

    def close(self) -> None:
        """Stop serving. After the final decision, first wait for the others to receive the decision."""
        if not self._is_over:
            self._is_over, self._deadline_s = True, 0.0
        self.join(SHUTDOWN_TIMEOUT_S + 1)

    def _serve_once(self) -> None:
        for peer, payloads in self._server.poll(POLL_S):
            self._read(self._by_peer.setdefault(peer, _Launcher(peer=peer)), payloads)
        now_s = time.monotonic()
        if now_s - self._last_heartbeat_s > HEARTBEAT_S:
            self._last_heartbeat_s = now_s
            self._send_heartbeats(now_s)
        if self._server.refusals.count and now_s > self._next_notice_s:
            self._next_notice_s = now_s + REFUSAL_NOTICE_S
            self._report_refusals()
        if not self._is_over and not self._active and now_s > self._deadline_s:
            self._time_out()

    @property
    def _launchers(self) -> list[_Launcher]:
        return list(self._by_peer.values())

    def _send(self, launcher: _Launcher, record: FromCoordinator) -> None:
        self._server.send(launcher.peer, encode(record))

    def _send_heartbeats(self, now_s: float) -> None:
        for launcher in self._launchers:
            self._send(launcher, Heartbeat())
            if now_s - launcher.last_received_s > HEARTBEAT_TIMEOUT_S:
                self._mark_lost(
                    launcher, f"sent no heartbeat for {HEARTBEAT_TIMEOUT_S:.0f} s: the node or the network is down"
                )

    def _report_refusals(self) -> None:
        refusals = self._server.refusals
        print_status(
            f"warning: connections refused on port {self._settings.launcher_port}: {refusals.count} without this job's "
            f"secret, the last from {refusals.last_host}"
        )
        refusals.count = 0

    def _read(self, launcher: _Launcher, payloads: list[bytes] | None) -> None:
        if payloads is None:
            self._mark_lost(launcher, "disconnected: its launcher was killed or the node is down")
            return
        launcher.last_received_s = time.monotonic()
        try:
            for payload in payloads:
                if launcher.peer in self._by_peer:
                    self._handle(launcher, decode(payload, FROM_LAUNCHER))
        except InvalidRecord:
            self._mark_lost(launcher, "sent an invalid message")
        except Exception:
            self._mark_lost(launcher, "sent a message that node 0 could not handle")
            raise

    def _handle(self, launcher: _Launcher, record: FromLauncher) -> None:
        if isinstance(record, Join):
            self._join(launcher, record)
        elif isinstance(record, Ended) and launcher.node is not None and self._active.get(launcher.node) is launcher:
            self._end(launcher, record.outcome)
        elif isinstance(record, Stop) and launcher.node is not None:
            self._forward_signal(launcher, record.number)

    def _join(self, launcher: _Launcher, join: Join) -> None:
        node = launcher.peer.number
        assert node is not None, "only peers that have proved the key are read"
        size, expected = join.size, (self._settings.num_workers, self._settings.num_nodes)
        holder = next((other for other in self._launchers if other.node == node and other is not launcher), None)
        master = f"{self._settings.master_addr}:{self._settings.master_port}"
        if size != expected:
            message = (
                f"node {node} was started for {size[0]} workers on {size[1]} nodes, but node 0 for "
                f"{expected[0]} on {expected[1]}; start all nodes with the same WORKER_NUM and LOCAL_WORKER"
            )
            self._send(launcher, Refused(message=message))
            return
        if not 0 <= node < self._settings.num_nodes:
            self._mark_lost(launcher, "has no place in this job")
            return
        if holder and time.monotonic() - holder.last_received_s < RANK_HOLD_S:
            message = (
                f"NODE_RANK {node} is taken: another node registered the same workers at {master}; "
                "give each node its own NODE_RANK, and each job its own MASTER_PORT"
            )
            self._send(launcher, Refused(message=message))
            return
        if holder:
            self._mark_lost(holder, "stopped sending heartbeats, and its launcher was restarted")
        launcher.node, launcher.host, launcher.clock_skew_s = node, join.host, join.time_s - time.time()
        self._hosts[node] = launcher.host
        self._policy.count_earlier(join.num_restarts)
        self._joined[node] = launcher
        self._cause = self._cause or join.cause
        self._start_when_complete()

    def _start_when_complete(self) -> None:
        if self._is_over or self._active or len(self._joined) < self._settings.num_nodes:
            return
        self._active, self._joined, self._outcomes = self._joined, {}, {}
        self._num_attempts += 1
        warnings = [
            f"the clock of {launcher} differs by {launcher.clock_skew_s:+.0f} s from node 0's; "
            "synchronize both with NTP"
            for launcher in self._active.values()
            if abs(launcher.clock_skew_s) > MAX_CLOCK_SKEW_S
        ]
        for launcher in self._active.values():
            self._send(launcher, Go(warnings=tuple(warnings), cause=self._cause))
        self._last_cause, self._cause = self._cause, ""

    def _end(self, launcher: _Launcher, outcome: Outcome) -> None:
        assert launcher.node is not None
        self._outcomes[launcher.node] = outcome
        if outcome.end in (End.FAILED, End.KILLED, End.FINAL) and not self._is_stopping:
            self._cancel_others(str(launcher), outcome)
        if len(self._outcomes) == len(self._active):
            self._decide()

    def _cancel_others(self, name: str, outcome: Outcome) -> None:
        for node, launcher in self._active.items():
            # Nodes that have already ended print why they must wait.
            if self._outcomes.get(node) is not outcome:
                self._send(launcher, Cancel(reason=f"{name}: {outcome.reason}", lines=outcome.lines))

    def _decide(self) -> None:
        outcomes = self._outcomes.values()
        node, root = min(self._outcomes.items(), key=lambda item: _CAUSE_PRIORITY[item[1].end])
        cause = f"{self._active[node]}: {root.cause}" if root.cause else ""
        steps = [outcome.step for outcome in outcomes if outcome.step is not None]
        root = Outcome(end=root.end, code=root.code, reason=root.reason, step=max(steps, default=None))
        self._cause = add_cause(self._last_cause, root, cause)
        decision = self._policy.decide(root)
        launchers, self._active = self._active.values(), {}
        if decision.again:
            self._deadline_s = time.monotonic() + decision.delay_s + self._settings.rejoin_timeout_s
        self._announce(list(launchers), decision)
        self._start_when_complete()

    def _announce(self, launchers: list[_Launcher], decision: RestartDecision) -> None:
        for launcher in launchers:
            self._send(launcher, Decision(**vars(decision)))
        if not decision.again:
            self._is_over = True
            self._deadline_s = time.monotonic() + SHUTDOWN_TIMEOUT_S

    def _forward_signal(self, launcher: _Launcher, number: int) -> None:
        """Forward a stop signal received by one node, so that all nodes save and stop."""
        if not self._active:
            message = f"{name_signal(number)} on {launcher}: stopping the job"
            # Nodes in their restart delay read the signal when they join.
            others = [other for other in self._launchers if other.node is not None and other is not launcher]
            self._announce(others, RestartDecision(again=False, code=128 + number, message=message))
            return
        self._is_stopping = True
        for other in self._active.values():
            if other is not launcher:
                self._send(other, StopBy(number=number, by=str(launcher)))

    def _mark_lost(self, launcher: _Launcher, reason: str) -> None:
        self._by_peer.pop(launcher.peer, None)
        self._server.drop(launcher.peer)
        if launcher.node is None:
            return
        if self._joined.get(launcher.node) is launcher:
            del self._joined[launcher.node]
        if self._active.get(launcher.node) is launcher and launcher.node not in self._outcomes:
            end = End.STOPPED if self._is_stopping else End.KILLED
            self._end(launcher, Outcome(end=end, code=EXIT_FAILURE, reason=reason))

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
_CAUSE_PRIORITY = {
    End.STOPPED: 0,
    End.KILLED: 1,
    End.FINAL: 2,
    End.FAILED: 2,
    End.CANCELLED: 3,
    End.CONTINUES: 4,
    End.DONE: 5,
}
