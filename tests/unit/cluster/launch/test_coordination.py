"""The coordination of several launchers, each in a thread, without starting any worker."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ascend_cpt.cluster.launch.arguments import REPO_ROOT, LaunchSettings, parse_launch
from ascend_cpt.cluster.launch.coordination import coordinator as coordinator_module
from ascend_cpt.cluster.launch.coordination import receiver as receiver_module
from ascend_cpt.cluster.launch.coordination.coordinator import Coordinator
from ascend_cpt.cluster.launch.coordination.coordinator_client import (
    RemoteCoordinatorClient,
    Start,
    open_coordinator_client,
)
from ascend_cpt.cluster.launch.coordination.records import FROM_COORDINATOR, Go, Join
from ascend_cpt.cluster.launch.coordination.restart_policy import (
    CAUSE_PRIORITY,
    DONE,
    End,
    Outcome,
    RestartDecision,
    RestartPolicy,
)
from ascend_cpt.cluster.launch.signals import StopRequests
from ascend_cpt.cluster.messages.connection import connect
from ascend_cpt.cluster.messages.records import decode, encode
from ascend_cpt.cluster.messages.secret import LAUNCHERS
from ascend_cpt.errors import ClusterError

KEY = b"k" * 32
BANG = Outcome(end=End.FAILED, code=1, reason="worker 1 failed", lines=("RuntimeError: bang",), step=3)
CANCELLED = Outcome(end=End.CANCELLED, code=1)


class Node:
    """The coordination client and stop requests of one launcher, run in a thread."""

    def __init__(self, settings: LaunchSettings) -> None:
        self.requests = StopRequests()
        self.client = RemoteCoordinatorClient(settings, self.requests, KEY)

    def run(self, function: Callable[[Node], Any]) -> Callable[[], Any]:
        """Start `function` in a thread; the returned function waits for its value or raises its error."""
        results: list[Any] = []

        def work() -> None:
            try:
                results.append((function(self), None))
            except ClusterError as error:
                results.append((None, error))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()

        def wait() -> Any:
            thread.join(20)
            assert results, "no answer"
            value, error = results[0]
            if error:
                raise error
            return value

        return wait


@pytest.fixture
def settings(free_port: int) -> LaunchSettings:
    arguments = ["run_cpt.py", "4", "2", "127.0.0.1", "8118", "0", "--max-restarts", "2", "--restart-delay", "0"]
    made = parse_launch(arguments, {"ASCEND_CPT_LAUNCHER_PORT": str(free_port)}, REPO_ROOT)
    return replace(made, cluster_timeout_s=10, rejoin_timeout_s=10)


def on_node(settings: LaunchSettings, rank: int) -> LaunchSettings:
    return replace(settings, node_rank=rank)


@pytest.fixture
def serve(settings: LaunchSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Coordinator]]:
    monkeypatch.setattr(coordinator_module, "SHUTDOWN_TIMEOUT_S", 0.5)
    coordinators = []

    def start(**changes: Any) -> Coordinator:
        changed = replace(settings, **changes)
        coordinator = Coordinator(changed, RestartPolicy(changed.max_restarts, changed.restart_delay_s), KEY)
        coordinator.start()
        coordinators.append(coordinator)
        return coordinator

    yield start
    for coordinator in coordinators:
        coordinator.close()
        assert not coordinator.is_alive()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_start(answer: object) -> bool:
    return isinstance(answer, Start)


def start_attempt(settings: LaunchSettings) -> list[Node]:
    nodes = [Node(on_node(settings, rank)) for rank in range(settings.num_nodes)]
    waits = [node.run(lambda node: node.client.join()) for node in nodes]
    assert [wait().place for wait in waits] == list(range(settings.num_nodes))
    return nodes


def test_nodes_start_and_end_together(settings: LaunchSettings, serve: Callable[..., Coordinator]) -> None:
    serve()
    nodes = start_attempt(settings)
    assert not any(node.client.is_cancelled() for node in nodes)
    waits = [node.run(lambda node: node.client.report(DONE)) for node in nodes]
    assert [wait() for wait in waits] == [RestartDecision(again=False)] * 2
    for node in nodes:
        node.client.close()


def test_a_failure_ends_the_attempt_everywhere_and_all_join_the_next(
    settings: LaunchSettings, serve: Callable[..., Coordinator], capsys: pytest.CaptureFixture[str]
) -> None:
    serve()
    nodes = start_attempt(settings)
    failed = nodes[1].run(lambda node: node.client.report(BANG))
    wait_for(nodes[0].client.is_cancelled)
    output = capsys.readouterr().err
    assert "RuntimeError: bang\nnode 1 (" in output
    assert "worker 1 failed" in output
    decisions = [nodes[0].client.report(CANCELLED), failed()]
    assert [decision.again for decision in decisions] == [True, True]
    assert decisions[0].message == "restart 1 of 2 in 0 s (last finished step: 3)"
    # Node 0 waits until node 1 joins as well.
    first = nodes[0].run(lambda node: node.client.join())
    time.sleep(0.3)
    assert is_start(nodes[1].client.join())
    assert is_start(first())
    assert not nodes[0].client.is_cancelled()
    failed = nodes[1].run(lambda node: node.client.report(BANG))
    wait_for(nodes[0].client.is_cancelled)
    assert "twice in a row" in nodes[0].client.report(CANCELLED).message
    assert not failed().again


def test_others_wait_for_a_lost_node(
    settings: LaunchSettings, serve: Callable[..., Coordinator], capsys: pytest.CaptureFixture[str]
) -> None:
    serve()
    nodes = start_attempt(settings)
    nodes[1].client.close()
    wait_for(nodes[0].client.is_cancelled)
    assert "node 1 (" in capsys.readouterr().err
    assert nodes[0].client.report(CANCELLED).again
    waiting = nodes[0].run(lambda node: node.client.join())
    again = Node(on_node(settings, 1))
    assert is_start(again.client.join())
    assert is_start(waiting())


def test_a_node_that_does_not_come_back_ends_the_job(
    settings: LaunchSettings, serve: Callable[..., Coordinator]
) -> None:
    serve(rejoin_timeout_s=1)
    nodes = start_attempt(settings)
    nodes[1].client.close()
    wait_for(nodes[0].client.is_cancelled)
    assert nodes[0].client.report(CANCELLED).again
    decision = nodes[0].client.join()
    assert isinstance(decision, RestartDecision)
    assert (decision.again, decision.code) == (False, 1)
    assert f"node 1 ({socket.gethostname()}) did not rejoin within 1 s" in decision.message


def test_a_node_that_never_connects_is_named(settings: LaunchSettings, serve: Callable[..., Coordinator]) -> None:
    serve(cluster_timeout_s=1)
    decision = RemoteCoordinatorClient(settings, StopRequests(), KEY).join()
    assert isinstance(decision, RestartDecision)
    assert "within 1 s: node 1 did not connect" in decision.message


def test_an_unreachable_node_0_is_reported_with_its_address(
    settings: LaunchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ascend_cpt.cluster.launch.coordination.coordinator_client.SHUTDOWN_TIMEOUT_S", 0)
    decision = RemoteCoordinatorClient(replace(settings, node_rank=1, cluster_timeout_s=1), StopRequests(), KEY).join()
    assert isinstance(decision, RestartDecision)
    assert f"node 0's launcher did not answer at 127.0.0.1:{settings.launcher_port} within 1 s" in decision.message


def test_node_0_may_be_restarted(settings: LaunchSettings, serve: Callable[..., Coordinator]) -> None:
    first = serve()
    nodes = start_attempt(settings)
    nodes[0].client.close()
    first.close()
    wait_for(nodes[1].client.is_cancelled)
    decision = nodes[1].client.report(CANCELLED)
    assert (decision.again, decision.message) == (True, "waiting up to 10 s for node 0; then restart 1 of 2")
    waiting = nodes[1].run(lambda node: node.client.join())
    serve()
    again = Node(settings)
    assert is_start(again.client.join())
    assert is_start(waiting())
    # The new node 0 takes over the restart count from node 1.
    failed = nodes[1].run(lambda node: node.client.report(BANG))
    wait_for(again.client.is_cancelled)
    assert again.client.report(CANCELLED).message.startswith("restart 2 of 2")
    assert failed().again


def test_without_restarts_losing_node_0_ends_the_job(
    settings: LaunchSettings, serve: Callable[..., Coordinator]
) -> None:
    coordinator = serve()
    nodes = start_attempt(replace(settings, max_restarts=0))
    coordinator.close()
    for outcome in (DONE, CANCELLED):
        decision = nodes[1].client.report(outcome)
        assert (decision.again, decision.code) == (False, 1)


def test_a_stop_reaches_every_node(settings: LaunchSettings, serve: Callable[..., Coordinator]) -> None:
    serve()
    nodes = start_attempt(settings)
    nodes[1].client.announce_stop(15)
    wait_for(lambda: nodes[0].client.is_cancelled() or nodes[0].requests.received)
    assert nodes[0].requests.received == [15]
    stopped = Outcome(end=End.STOPPED, code=143)
    assert [node.client.report(stopped) for node in nodes] == [RestartDecision(again=False, code=143)] * 2


def test_a_stop_between_attempts_reaches_every_node(
    settings: LaunchSettings, serve: Callable[..., Coordinator]
) -> None:
    serve()
    nodes = start_attempt(settings)
    failed = nodes[1].run(lambda node: node.client.report(BANG))
    wait_for(nodes[0].client.is_cancelled)
    assert nodes[0].client.report(CANCELLED).again
    assert failed().again
    # Node 1 still waits before it joins.
    waiting = nodes[0].run(lambda node: node.client.join())
    time.sleep(0.3)
    nodes[0].requests.add(15)
    assert waiting().code == 143
    decision = nodes[1].client.join()
    assert isinstance(decision, RestartDecision)
    assert (decision.again, decision.code) == (False, 143)
    assert "SIGTERM on node 0 (" in decision.message


def test_a_node_stopped_before_the_start_may_join_again(
    settings: LaunchSettings, serve: Callable[..., Coordinator]
) -> None:
    serve()
    waiting = Node(settings).run(lambda node: node.client.join())
    node = Node(on_node(settings, 1))
    node.requests.add(2)
    decision = node.client.join()
    assert isinstance(decision, RestartDecision)
    assert decision.code == 130
    assert is_start(RemoteCoordinatorClient(on_node(settings, 1), StopRequests(), KEY).join())
    assert is_start(waiting())


def test_a_kill_takes_precedence_over_a_failure_as_cause(
    settings: LaunchSettings, serve: Callable[..., Coordinator]
) -> None:
    serve()
    nodes = start_attempt(settings)
    mistake = Outcome(end=End.FINAL, code=2, reason="worker 0 ended: rank 2 is gone")
    first = nodes[0].run(lambda node: node.client.report(mistake))
    wait_for(nodes[1].client.is_cancelled)
    assert nodes[1].client.report(Outcome(end=End.KILLED, code=1, reason="worker 2 was killed")).again
    assert first().again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"node_rank": 0}, "NODE_RANK 0 is taken"),
        ({"node_rank": 1, "num_workers": 6}, "started with 6 workers, 3 nodes"),
    ],
)
def test_a_node_with_conflicting_settings_is_refused(
    settings: LaunchSettings, serve: Callable[..., Coordinator], changes: dict[str, int], message: str
) -> None:
    serve()
    node = Node(settings)
    node.run(lambda node: node.client.join())
    time.sleep(0.3)
    with pytest.raises(ClusterError, match=message):
        RemoteCoordinatorClient(replace(settings, **changes), StopRequests(), KEY).join()


def test_a_node_without_heartbeats_is_lost(
    settings: LaunchSettings, serve: Callable[..., Coordinator], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    nodes = start_attempt(settings)
    # A broken network: the socket stays open, but no data arrives.
    receiver = nodes[1].client._receiver
    assert receiver
    for module in (coordinator_module, receiver_module):
        monkeypatch.setattr(module, "HEARTBEAT_TIMEOUT_S", 1.0)
        monkeypatch.setattr(module, "HEARTBEAT_S", 0.2)
    receiver.connection.send = lambda payload: False  # type: ignore[method-assign]
    wait_for(nodes[0].client.is_cancelled)
    wait_for(nodes[1].client.is_cancelled)


def test_invalid_connections_are_ignored(settings: LaunchSettings, serve: Callable[..., Coordinator]) -> None:
    coordinator = serve()
    for text in (
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"kind": "join"}\n',
        b'{"kind": "signal", "number": 9}\n',
        b"[]\n",
        b"{}\n",
    ):
        with socket.create_connection(("127.0.0.1", settings.launcher_port)) as client:
            client.sendall(text)
    start_attempt(settings)
    assert coordinator.is_alive()


def test_clock_skew_is_reported(settings: LaunchSettings, serve: Callable[..., Coordinator]) -> None:
    serve()
    address = ("127.0.0.1", settings.launcher_port)
    connections = []
    for node, skew_s in ((0, 0.0), (1, -90.0)):
        connection = connect(address, key=KEY, purpose=LAUNCHERS, number=node)
        join = Join(host=f"h{node}", size=(4, 2, 0), num_restarts=0, time_s=time.time() + skew_s, cause="")
        connection.send(encode(join))
        connections.append(connection)
    for connection in connections:
        found: list[Go] = []
        while not found:
            records = [decode(payload, FROM_COORDINATOR) for payload in connection.receive() or []]
            found = [record for record in records if isinstance(record, Go)]
        assert [text.split(" s ")[0] for text in found[0].warnings] == ["the clock of node 1 (h1) differs by -90"]
        connection.close()


def test_a_port_in_use_is_named(settings: LaunchSettings, serve: Callable[..., Coordinator]) -> None:
    serve()
    with pytest.raises(ClusterError, match=rf"port {settings.launcher_port} \(MASTER_PORT \+ 2"):
        with open_coordinator_client(settings, StopRequests(), KEY):
            pass


def test_every_end_has_a_priority() -> None:
    assert set(CAUSE_PRIORITY) == set(End)
