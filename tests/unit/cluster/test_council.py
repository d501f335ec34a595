"""The talk between the launchers of several nodes, each in a thread, without any process of a job."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ascend_cpt.cluster import hub as hub_module
from ascend_cpt.cluster import wire
from ascend_cpt.cluster.arguments import REPO_ROOT, LaunchPlan, parse_launch
from ascend_cpt.cluster.council import ClusterCouncil, open_council
from ascend_cpt.cluster.hub import Hub
from ascend_cpt.cluster.outcome import DONE, End, Outcome, RestartPolicy, Verdict
from ascend_cpt.cluster.stop_requests import StopRequests
from ascend_cpt.errors import ClusterError

BANG = Outcome(end=End.FAILED, code=1, reason="worker 1 failed", lines=("RuntimeError: bang",), step=3)
CANCELLED = Outcome(end=End.CANCELLED, code=1)


class Node:
    """A launcher's talk on a node: council, stop requests, and its thread's result."""

    def __init__(self, plan: LaunchPlan) -> None:
        self.requests = StopRequests()
        self.council = ClusterCouncil(plan, self.requests)

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
def plan(free_port: int) -> LaunchPlan:
    arguments = ["run_cpt.py", "4", "2", "127.0.0.1", "8118", "0", "--max-restarts", "2", "--restart-delay", "0"]
    made = parse_launch(arguments, {"ASCEND_CPT_LAUNCHER_PORT": str(free_port)}, REPO_ROOT)
    return replace(made, cluster_timeout_s=10, rejoin_timeout_s=10)


def on_node(plan: LaunchPlan, rank: int) -> LaunchPlan:
    return replace(plan, node_rank=rank)


@pytest.fixture
def serve(plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hub]]:
    monkeypatch.setattr(hub_module, "FAREWELL_S", 0.5)
    hubs = []

    def start(**changes: Any) -> Hub:
        changed = replace(plan, **changes)
        hub = Hub(changed, RestartPolicy(changed.max_restarts, changed.restart_delay_s))
        hub.start()
        hubs.append(hub)
        return hub

    yield start
    for hub in hubs:
        hub.close()
        assert not hub.is_alive()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start_attempt(plan: LaunchPlan) -> list[Node]:
    nodes = [Node(on_node(plan, rank)) for rank in range(plan.num_nodes)]
    waits = [node.run(lambda node: node.council.gather()) for node in nodes]
    assert [wait() for wait in waits] == [None, None]
    return nodes


def test_nodes_start_and_end_together(plan: LaunchPlan, serve: Callable[..., Hub]) -> None:
    serve()
    nodes = start_attempt(plan)
    assert not any(node.council.is_cancelled() for node in nodes)
    waits = [node.run(lambda node: node.council.conclude(DONE)) for node in nodes]
    assert [wait() for wait in waits] == [Verdict(again=False)] * 2
    for node in nodes:
        node.council.close()


def test_a_failure_ends_the_attempt_everywhere_and_all_join_the_next(
    plan: LaunchPlan, serve: Callable[..., Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    serve()
    nodes = start_attempt(plan)
    failed = nodes[1].run(lambda node: node.council.conclude(BANG))
    wait_for(nodes[0].council.is_cancelled)
    said = capsys.readouterr().err
    assert "RuntimeError: bang\nnode 1 (" in said
    assert "worker 1 failed" in said
    verdicts = [nodes[0].council.conclude(CANCELLED), failed()]
    assert [verdict.again for verdict in verdicts] == [True, True]
    assert verdicts[0].message == "restart 1 of 2 in 0 s (last finished step: 3)"
    # Node 0 waits until node 1 has nothing left of the first attempt.
    first = nodes[0].run(lambda node: node.council.gather())
    time.sleep(0.3)
    assert nodes[1].council.gather() is None
    assert first() is None
    assert not nodes[0].council.is_cancelled()
    failed = nodes[1].run(lambda node: node.council.conclude(BANG))
    wait_for(nodes[0].council.is_cancelled)
    assert "twice in a row" in nodes[0].council.conclude(CANCELLED).message
    assert not failed().again


def test_a_lost_node_is_waited_for(
    plan: LaunchPlan, serve: Callable[..., Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    serve()
    nodes = start_attempt(plan)
    nodes[1].council.close()
    wait_for(nodes[0].council.is_cancelled)
    assert "node 1 (" in capsys.readouterr().err
    assert nodes[0].council.conclude(CANCELLED).again
    waiting = nodes[0].run(lambda node: node.council.gather())
    again = Node(on_node(plan, 1))
    assert again.council.gather() is None
    assert waiting() is None


def test_a_node_that_does_not_come_back_ends_the_job(plan: LaunchPlan, serve: Callable[..., Hub]) -> None:
    serve(rejoin_timeout_s=1)
    nodes = start_attempt(plan)
    nodes[1].council.close()
    wait_for(nodes[0].council.is_cancelled)
    assert nodes[0].council.conclude(CANCELLED).again
    verdict = nodes[0].council.gather()
    assert verdict
    assert (verdict.again, verdict.code) == (False, 1)
    assert f"node 1 ({socket.gethostname()}) did not come back within 1 s" in verdict.message


def test_a_node_that_never_comes_is_named(plan: LaunchPlan, serve: Callable[..., Hub]) -> None:
    serve(cluster_timeout_s=1)
    verdict = ClusterCouncil(plan, StopRequests()).gather()
    assert verdict
    assert "within 1 s: node 1 did not come" in verdict.message


def test_without_node_0_the_others_say_where_they_looked(plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ascend_cpt.cluster.council.FAREWELL_S", 0)
    verdict = ClusterCouncil(replace(plan, node_rank=1, cluster_timeout_s=1), StopRequests()).gather()
    assert verdict
    assert f"node 0's launcher did not answer at 127.0.0.1:{plan.launcher_port} within 1 s" in verdict.message


def test_node_0_itself_may_be_started_anew(plan: LaunchPlan, serve: Callable[..., Hub]) -> None:
    first = serve()
    nodes = start_attempt(plan)
    nodes[0].council.close()
    first.close()
    wait_for(nodes[1].council.is_cancelled)
    verdict = nodes[1].council.conclude(CANCELLED)
    assert (verdict.again, verdict.message) == (True, "restart 1 of 2 when node 0 is back, within 10 s")
    waiting = nodes[1].run(lambda node: node.council.gather())
    serve()
    again = Node(plan)
    assert again.council.gather() is None
    assert waiting() is None
    # The new node 0 knows from node 1 that one restart is used up.
    failed = nodes[1].run(lambda node: node.council.conclude(BANG))
    wait_for(again.council.is_cancelled)
    assert again.council.conclude(CANCELLED).message.startswith("restart 2 of 2")
    assert failed().again


def test_without_restarts_a_lost_node_0_is_the_end(plan: LaunchPlan, serve: Callable[..., Hub]) -> None:
    hub = serve()
    nodes = start_attempt(replace(plan, max_restarts=0))
    hub.close()
    for outcome in (DONE, CANCELLED):
        verdict = nodes[1].council.conclude(outcome)
        assert (verdict.again, verdict.code) == (False, 1)


def test_a_stop_reaches_every_node(plan: LaunchPlan, serve: Callable[..., Hub]) -> None:
    serve()
    nodes = start_attempt(plan)
    nodes[1].council.announce_stop(15)
    wait_for(lambda: nodes[0].council.is_cancelled() or nodes[0].requests.received)
    assert nodes[0].requests.received == [15]
    stopped = Outcome(end=End.STOPPED, code=143)
    assert [node.council.conclude(stopped) for node in nodes] == [Verdict(again=False, code=143)] * 2


def test_a_stop_between_attempts_reaches_every_node(plan: LaunchPlan, serve: Callable[..., Hub]) -> None:
    serve()
    nodes = start_attempt(plan)
    failed = nodes[1].run(lambda node: node.council.conclude(BANG))
    wait_for(nodes[0].council.is_cancelled)
    assert nodes[0].council.conclude(CANCELLED).again
    assert failed().again
    # Node 1 still waits before it joins.
    waiting = nodes[0].run(lambda node: node.council.gather())
    time.sleep(0.3)
    nodes[0].requests.add(15)
    assert waiting().code == 143
    verdict = nodes[1].council.gather()
    assert verdict
    assert (verdict.again, verdict.code) == (False, 143)
    assert "SIGTERM on node 0 (" in verdict.message


def test_a_node_that_leaves_before_the_start_may_come_again(plan: LaunchPlan, serve: Callable[..., Hub]) -> None:
    serve()
    waiting = Node(plan).run(lambda node: node.council.gather())
    node = Node(on_node(plan, 1))
    node.requests.add(2)
    verdict = node.council.gather()
    assert verdict
    assert verdict.code == 130
    assert ClusterCouncil(on_node(plan, 1), StopRequests()).gather() is None
    assert waiting() is None


def test_what_was_killed_is_the_cause_of_what_failed(plan: LaunchPlan, serve: Callable[..., Hub]) -> None:
    serve()
    nodes = start_attempt(plan)
    mistake = Outcome(end=End.FINAL, code=2, reason="worker 0 ended: rank 2 is gone")
    first = nodes[0].run(lambda node: node.council.conclude(mistake))
    wait_for(nodes[1].council.is_cancelled)
    assert nodes[1].council.conclude(Outcome(end=End.KILLED, code=1, reason="worker 2 was killed")).again
    assert first().again


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"node_rank": 0}, "NODE_RANK 0 is taken"), ({"node_rank": 1, "num_workers": 6}, "started for 6 workers on 3")],
)
def test_who_does_not_fit_is_refused(
    plan: LaunchPlan, serve: Callable[..., Hub], changes: dict[str, int], message: str
) -> None:
    serve()
    node = Node(plan)
    node.run(lambda node: node.council.gather())
    time.sleep(0.3)
    with pytest.raises(ClusterError, match=message):
        ClusterCouncil(replace(plan, **changes), StopRequests()).gather()


def test_a_silent_node_is_lost(plan: LaunchPlan, serve: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    serve()
    nodes = start_attempt(plan)
    # A broken network: the socket stays open, and nothing comes.
    line = nodes[1].council._line
    assert line
    monkeypatch.setattr(wire, "SILENCE_S", 1.0)
    monkeypatch.setattr(wire, "BEAT_S", 0.2)
    line.connection.send = lambda **message: False  # type: ignore[method-assign]
    wait_for(nodes[0].council.is_cancelled)
    wait_for(nodes[1].council.is_cancelled)


def test_strangers_do_not_disturb(plan: LaunchPlan, serve: Callable[..., Hub]) -> None:
    hub = serve()
    for text in (
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"kind": "join"}\n',
        b'{"kind": "signal", "number": 9}\n',
        b"[]\n",
        b"{}\n",
    ):
        with socket.create_connection(("127.0.0.1", plan.launcher_port)) as stranger:
            stranger.sendall(text)
    start_attempt(plan)
    assert hub.is_alive()


def test_clocks_that_differ_are_told(plan: LaunchPlan, serve: Callable[..., Hub]) -> None:
    serve()
    connections = []
    for node, skew_s in ((0, 0.0), (1, -90.0)):
        connection = wire.Connection(socket.create_connection(("127.0.0.1", plan.launcher_port)))
        connection.send(
            kind="join", node=node, host=f"h{node}", size=[4, 2], num_restarts=0, time_s=time.time() + skew_s
        )
        connections.append(connection)
    for connection in connections:
        messages: list[wire.Message] = []
        while not messages:
            messages = [message for message in connection.receive() or [] if message["kind"] == "go"]
        assert [text.split(" s ")[0] for text in messages[0]["warnings"]] == ["the clock of node 1 (h1) differs by -90"]
        connection.close()


def test_a_taken_port_is_named(plan: LaunchPlan, serve: Callable[..., Hub]) -> None:
    serve()
    with pytest.raises(ClusterError, match=rf"port {plan.launcher_port} \(MASTER_PORT \+ 2"):
        with open_council(plan, StopRequests()):
            pass


def test_the_ranking_knows_every_end() -> None:
    assert set(hub_module._RANK) == set(End)
