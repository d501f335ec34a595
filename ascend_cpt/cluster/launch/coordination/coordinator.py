"""The coordinator on node 0, which starts and ends a job's attempts on all nodes together.

A node joins an attempt only when no process from an earlier attempt runs on that node, so attempts never overlap.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from ascend_cpt.cluster.job.job_nodes import read_fitting
from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.coordination.placement import FENCE_S, Placement
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
    Standby,
    Stop,
    StopBy,
)
from ascend_cpt.cluster.launch.coordination.restart_policy import (
    CAUSE_PRIORITY,
    End,
    Outcome,
    RestartDecision,
    RestartPolicy,
    add_cause,
)
from ascend_cpt.cluster.launch.options import SPARE_NODES
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
    is_on_standby: bool = False

    def __str__(self) -> str:
        return f"node {self.node} ({self.host})"


class Coordinator(threading.Thread):
    """Serves the launchers of all nodes, including node 0's own, until the job ends."""

    def __init__(self, settings: LaunchSettings, policy: RestartPolicy, key: bytes) -> None:
        super().__init__(daemon=True, name="coordinator")
        self._settings, self._policy = settings, policy
        try:
            self._server = Server(
                (settings.master_addr, settings.launcher_port),
                key=key,
                purpose=LAUNCHERS,
                size=settings.num_launchers,
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
        self._placement = Placement(
            num_nodes=settings.num_nodes,
            num_spares=settings.spare_nodes,
            min_nodes=settings.min_nodes,
            lost_timeout_s=min(settings.lost_node_timeout_s, settings.rejoin_timeout_s),
            now_s=time.monotonic(),
            hosts=self._hosts,
        )
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
        if not self._is_over and not self._active:
            self._start_when_complete()
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
                    launcher,
                    f"sent no heartbeat for {HEARTBEAT_TIMEOUT_S:.0f} s: the node or the network is down",
                    silent_s=HEARTBEAT_TIMEOUT_S,
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
        elif isinstance(record, Stop) and launcher.node in self._placement.members:
            self._forward_signal(launcher, record.number)

    def _join(self, launcher: _Launcher, join: Join) -> None:
        node = launcher.peer.number
        assert node is not None, "only peers that have proved the key are read"
        size = join.size
        expected = (self._settings.num_workers, self._settings.num_nodes, self._settings.spare_nodes)
        holder = next((other for other in self._launchers if other.node == node and other is not launcher), None)
        master = f"{self._settings.master_addr}:{self._settings.master_port}"
        if size != expected:
            message = (
                f"node {node} was started with {size[0]} workers, {size[1]} nodes and {size[2]} spares, but node 0 "
                f"with {expected[0]}, {expected[1]} and {expected[2]}; start all nodes with the same WORKER_NUM, "
                f"LOCAL_WORKER and {SPARE_NODES}"
            )
            self._send(launcher, Refused(message=message))
            return
        if not self._placement.accepts(node):
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
        if self._policy.has_restarted:
            self._placement.allow_leaving_out()
        self._joined[node] = launcher
        self._placement.arrive(node)
        self._cause = self._cause or join.cause
        self._start_when_complete()
        self._put_on_standby()

    def _start_when_complete(self) -> None:
        if self._is_over or self._active:
            return
        members = self._placement.choose(
            self._joined.keys(), now_s=time.monotonic(), fitting=self._read_fitting_numbers()
        )
        if members is None:
            return
        self._active, self._outcomes = {node: self._joined.pop(node) for node in members}, {}
        self._num_attempts += 1
        warnings = [
            f"the clock of {launcher} differs by {launcher.clock_skew_s:+.0f} s from node 0's; "
            "synchronize both with NTP"
            for launcher in self._active.values()
            if abs(launcher.clock_skew_s) > MAX_CLOCK_SKEW_S
        ]
        hosts, reason = tuple(launcher.host for launcher in self._active.values()), self._placement.reason
        for place, launcher in enumerate(self._active.values()):
            launcher.is_on_standby = False
            go = Go(
                warnings=tuple(warnings),
                cause=self._cause,
                attempt=self._num_attempts,
                place=place,
                hosts=hosts,
                reason=reason,
            )
            self._send(launcher, go)
        self._last_cause, self._cause = self._cause, ""
        self._put_on_standby()

    def _put_on_standby(self) -> None:
        """Notify launchers that have joined and do not take part that they are spares."""
        for node, launcher in self._joined.items():
            if not launcher.is_on_standby and node not in self._placement.members:
                launcher.is_on_standby = True
                message = f"node {node} is a spare: it waits until it is needed to replace another node"
                if node < self._settings.num_nodes:
                    message = f"node {node} waits as a spare: the job currently runs without it"
                self._send(launcher, Standby(message=message))

    def _read_fitting_numbers(self) -> set[int] | None:
        """Return the numbers of nodes that fit the run, as far as its workers recorded them."""
        sizes = read_fitting(self._settings.fitting_file)
        per_node = self._settings.num_local_workers
        return None if sizes is None else {size // per_node for size in sizes if size % per_node == 0}

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
        node, root = min(self._outcomes.items(), key=lambda item: CAUSE_PRIORITY[item[1].end])
        cause = f"{self._active[node]}: {root.cause}" if root.cause else ""
        steps = [outcome.step for outcome in outcomes if outcome.step is not None]
        root = Outcome(end=root.end, code=root.code, reason=root.reason, step=max(steps, default=None))
        self._cause = add_cause(self._last_cause, root, cause)
        culprit, without = self._find_dispensable(root)
        decision = self._policy.decide(root, culprit=culprit, without=without)
        launchers, self._active = self._active.values(), {}
        if decision.again:
            # Long enough for another node to take over.
            limit_s = max(self._settings.rejoin_timeout_s, HEARTBEAT_TIMEOUT_S + FENCE_S if without else 0)
            self._deadline_s = time.monotonic() + decision.delay_s + limit_s
        self._announce(list(launchers), decision)
        self._start_when_complete()

    def _find_dispensable(self, root: Outcome) -> tuple[int | None, str]:
        """Return the only node that failed, if it is a single one, and the nodes that a restart can do without.

        These are lost nodes, or a node that alone ended two attempts in a row. For `RestartPolicy.decide`.
        """
        failed = {node for node, outcome in self._outcomes.items() if outcome.end in (End.FAILED, End.KILLED)}
        lost = {node for node in failed if self._active[node].peer not in self._by_peer}
        culprit = next(iter(failed)) if len(failed) == 1 else None
        is_repeated = not lost and self._policy.has_failed_alone(culprit, root)
        nodes = {culprit} if is_repeated and culprit is not None else lost
        connected = {launcher.node for launcher in self._launchers if launcher.node is not None}
        if not nodes or not self._placement.can_lose(nodes, connected, self._read_fitting_numbers()):
            return culprit, ""
        if is_repeated and culprit is not None:
            reason = "its workers failed twice in a row without progress"
            self._placement.exclude(culprit, now_s=time.monotonic(), reason=reason)
        names = " and ".join(self._placement.name(node) for node in sorted(nodes))
        return culprit, f"without {names}" if is_repeated else f"after the loss of {names}"

    def _announce(self, launchers: list[_Launcher], decision: RestartDecision) -> None:
        if not decision.again:
            launchers = list(dict.fromkeys([*launchers, *self._joined.values()]))  # spares as well
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

    def _mark_lost(self, launcher: _Launcher, reason: str, *, silent_s: float = 0.0) -> None:
        self._by_peer.pop(launcher.peer, None)
        self._server.drop(launcher.peer)
        if launcher.node is None:
            return
        if self._joined.get(launcher.node) is launcher:
            del self._joined[launcher.node]
        self._placement.lose(launcher.node, now_s=time.monotonic(), reason=reason, silent_s=silent_s)
        if self._active.get(launcher.node) is launcher and launcher.node not in self._outcomes:
            end = End.STOPPED if self._is_stopping else End.KILLED
            self._end(launcher, Outcome(end=end, code=EXIT_FAILURE, reason=reason))

    def _time_out(self) -> None:
        missing = [node for node in self._placement.members if node not in self._joined]
        names = ", ".join(map(self._placement.name, missing))
        if self._num_attempts:
            message = (
                f"{names} did not rejoin within {self._settings.rejoin_timeout_s} s; start the job again to resume"
                f"{self._placement.explain_waiting(self._joined.keys(), self._read_fitting_numbers())}"
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
