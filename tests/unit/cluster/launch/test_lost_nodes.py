"""Jobs that go on without a lost node: the coordinator and the clients of the launchers in threads, without workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ascend_cpt.cluster.job.job_nodes import write_fitting
from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.coordination import placement as placement_module
from ascend_cpt.cluster.launch.coordination.coordinator import Coordinator
from ascend_cpt.cluster.launch.coordination.coordinator_client import RemoteCoordinatorClient, Start
from ascend_cpt.cluster.launch.coordination.records import FROM_COORDINATOR, Go, Join, Stop
from ascend_cpt.cluster.launch.coordination.restart_policy import DONE, End, Outcome, RestartDecision, RestartPolicy
from ascend_cpt.cluster.launch.signals import StopRequests
from ascend_cpt.cluster.messages.connection import Connection, RefusedError, connect
from ascend_cpt.cluster.messages.records import decode, encode
from ascend_cpt.cluster.messages.secret import LAUNCHERS
from ascend_cpt.errors import ClusterError
from tests.unit.cluster.launch.test_coordination import (
    BANG,
    CANCELLED,
    KEY,
    Node,
    on_node,
    serve,
    settings,
    start_attempt,
    wait_for,
)

__all__ = ["serve", "settings"]  # fixtures of the tests below

Serve = Callable[..., Coordinator]
SPARE = {"spare_nodes": 1, "max_restarts": 0}
FEWER = {"min_nodes": 1, "max_restarts": 0, "lost_node_timeout_s": 1}


@pytest.fixture(autouse=True)
def short_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_module, "FENCE_S", 0.3)


@pytest.fixture
def spare_job(settings: LaunchSettings, serve: Serve) -> Iterator[tuple[LaunchSettings, list[Node], Node, Any]]:
    """Two nodes that run an attempt, and a spare that waits in `join`, whose answer the last item returns."""
    settings = replace(settings, **SPARE)
    serve_with_losses(serve, settings, 1)
    spare = Node(on_node(settings, 2))
    answer = spare.run(lambda node: node.client.join())
    wait_for(lambda: spare.client._is_on_standby)
    yield settings, start_attempt(settings), spare, answer
    spare.requests.add(15)


def serve_with_losses(serve: Serve, settings: LaunchSettings, max_losses: int) -> Coordinator:
    coordinator = serve(**vars(settings))
    coordinator._policy._max_losses = max_losses
    return coordinator


def lose(node: Node, other: Node) -> RestartDecision:
    """Close the launcher of one node, and return the decision that another one receives."""
    node.client.close()
    wait_for(other.client.is_cancelled)
    return other.client.report(CANCELLED)


def test_a_spare_takes_the_place_of_a_lost_node(
    spare_job: tuple[LaunchSettings, list[Node], Node, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, nodes, _, spare = spare_job
    decision = lose(nodes[1], nodes[0])
    assert decision.again
    assert decision.message.startswith("restart after the loss of node 1 (")
    assert nodes[0].client.ended_by.startswith("node 1 (")
    first = nodes[0].client.join()
    second = spare()
    assert isinstance(first, Start)
    assert (first.place, second.place, first.attempt, len(first.hosts)) == (0, 1, 2, 2)
    assert first.reason == second.reason
    assert first.reason.startswith("node 1 (")
    assert "was lost: disconnected" in first.reason
    assert first.reason.endswith(", a spare, takes its place")
    assert first.reason in capsys.readouterr().err
    # The lost node returns as a spare, and ends with the job.
    again = Node(on_node(settings, 1))
    answer = again.run(lambda node: node.client.join())
    wait_for(lambda: again.client._is_on_standby)
    assert "node 1 waits as a spare: the job currently runs without it" in capsys.readouterr().err
    spare_node = spare_job[2]
    waits = [node.run(lambda node: node.client.report(DONE)) for node in (nodes[0], spare_node)]
    assert [wait() for wait in waits] == [RestartDecision(again=False)] * 2
    assert answer() == RestartDecision(again=False)


def test_the_spare_ends_with_the_job(spare_job: tuple[LaunchSettings, list[Node], Node, Any]) -> None:
    _, nodes, _, spare = spare_job
    failed = nodes[1].run(lambda node: node.client.report(BANG))
    wait_for(nodes[0].client.is_cancelled)
    assert not nodes[0].client.report(CANCELLED).again
    assert not failed().again
    assert spare() == RestartDecision(again=False, code=BANG.code)


def test_a_stopped_spare_leaves_the_job_running(spare_job: tuple[LaunchSettings, list[Node], Node, Any]) -> None:
    _, nodes, node, spare = spare_job
    node.requests.add(15)
    assert spare().code == 143
    node.client.close()
    time.sleep(0.5)
    assert not any(node.client.is_cancelled() or node.requests.received for node in nodes)


def test_a_spare_waits_for_a_lost_node_0_as_long_as_the_others(
    settings: LaunchSettings, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ascend_cpt.cluster.launch.coordination.coordinator_client.SHUTDOWN_TIMEOUT_S", 0)
    settings = replace(settings, **SPARE | {"cluster_timeout_s": 100, "rejoin_timeout_s": 2})
    coordinator = serve_with_losses(serve, settings, 1)
    spare = Node(on_node(settings, 2))
    answer = spare.run(lambda node: node.client.join())
    wait_for(lambda: spare.client._is_on_standby)
    coordinator.close()
    assert "node 0's launcher did not answer" in answer().message


def test_a_lost_spare_does_not_end_the_attempt(spare_job: tuple[LaunchSettings, list[Node], Node, Any]) -> None:
    _, nodes, node, _ = spare_job
    node.requests.add(15)
    node.client.close()
    time.sleep(0.5)
    assert not any(node.client.is_cancelled() for node in nodes)
    # Without it, the loss of a node ends the job, as there are no restarts.
    assert not lose(nodes[1], nodes[0]).again


def test_a_node_whose_workers_fail_again_is_replaced(
    settings: LaunchSettings, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(settings, spare_nodes=1, max_restarts=5)
    serve_with_losses(serve, settings, 1)
    spare = Node(on_node(settings, 2))
    answer = spare.run(lambda node: node.client.join())
    wait_for(lambda: spare.client._is_on_standby)
    assert "node 2 is a spare: it waits until it is needed" in capsys.readouterr().err
    nodes = start_attempt(settings)
    bang = replace(BANG, step=None)

    def fail(node: Node, other: Node) -> RestartDecision:
        failed = node.run(lambda node: node.client.report(bang))
        wait_for(other.client.is_cancelled)
        decision = other.client.report(CANCELLED)
        assert failed() == decision
        return decision

    assert fail(nodes[1], nodes[0]).message == "restart 1 of 5 in 0 s"
    waits = [node.run(lambda node: node.client.join()) for node in nodes]
    assert [wait().place for wait in waits] == [0, 1]
    assert fail(nodes[1], nodes[0]).message.startswith("restart without node 1 (")
    excluded = nodes[1].run(lambda node: node.client.join())
    assert nodes[0].client.join().place == 0  # type: ignore[union-attr]
    wait_for(lambda: nodes[1].client._is_on_standby)
    assert answer().place == 1
    # The same failure on the other node is not the node's fault.
    assert "twice in a row" in fail(spare, nodes[0]).message
    assert not excluded().again


def test_the_job_continues_on_fewer_nodes_and_grows_again(
    settings: LaunchSettings, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(settings, **FEWER)
    serve_with_losses(serve, settings, 1)
    nodes = start_attempt(settings)
    assert lose(nodes[1], nodes[0]).again
    began_s = time.monotonic()
    start = nodes[0].client.join()
    assert isinstance(start, Start)
    assert time.monotonic() - began_s > 0.5
    assert len(start.hosts) == 1
    assert start.reason.endswith("; the job continues on 1 of 2 nodes")
    again = Node(on_node(settings, 1))
    answer = again.run(lambda node: node.client.join())
    wait_for(lambda: again.client._is_on_standby)
    assert nodes[0].client.report(replace(DONE, end=End.CONTINUES)).again
    start = nodes[0].client.join()
    assert isinstance(start, Start)
    assert len(start.hosts) == 2
    assert answer().place == 1


def test_the_job_waits_for_a_lost_node_if_fewer_nodes_do_not_fit(
    settings: LaunchSettings, serve: Serve, tmp_path: Any
) -> None:
    settings = replace(settings, **FEWER | {"max_restarts": 1, "rejoin_timeout_s": 2}, log_dir=tmp_path)
    write_fitting(settings.fitting_file, ())
    serve_with_losses(serve, settings, 1)
    nodes = start_attempt(settings)
    assert lose(nodes[1], nodes[0]).again
    decision = nodes[0].client.join()
    assert isinstance(decision, RestartDecision)
    assert "start the job again to resume; the run does not fit on the remaining nodes (1; " in decision.message


def test_a_new_node_0_goes_on_without_a_node_that_is_gone(settings: LaunchSettings, serve: Serve) -> None:
    settings = replace(settings, num_workers=6, **FEWER | {"max_restarts": 2})
    coordinator = serve_with_losses(serve, settings, 2)
    nodes = start_attempt(settings)
    coordinator.close()
    nodes[2].client.close()
    wait_for(nodes[1].client.is_cancelled)
    assert nodes[1].client.report(CANCELLED).again
    serve_with_losses(serve, settings, 2)
    waiting = nodes[1].run(lambda node: node.client.join())
    start = RemoteCoordinatorClient(settings, StopRequests(), KEY).join()
    assert isinstance(start, Start)
    assert len(start.hosts) == 2
    assert waiting().place == 1


# Attacks from a process that has the secret, and from one without.


def listen(connection: Connection, kind: type, limit_s: float = 3.0) -> list[Any]:
    found: list[Any] = []
    deadline_s = time.monotonic() + limit_s
    connection.socket.settimeout(0.2)
    while not found and time.monotonic() < deadline_s and (payloads := connection.receive()) is not None:
        found = [one for one in (decode(payload, FROM_COORDINATOR) for payload in payloads) if isinstance(one, kind)]
    return found


def test_a_spare_without_the_secret_is_refused(spare_job: tuple[LaunchSettings, list[Node], Node, Any]) -> None:
    settings, nodes, _, _ = spare_job
    with pytest.raises(RefusedError):
        connect(("127.0.0.1", settings.launcher_port), key=b"x" * 32, purpose=LAUNCHERS, number=2)
    assert not any(node.client.is_cancelled() for node in nodes)


@pytest.mark.parametrize("number", [1, 2])
def test_the_rank_of_a_connected_launcher_cannot_be_claimed(
    spare_job: tuple[LaunchSettings, list[Node], Node, Any], number: int
) -> None:
    settings, nodes, _, _ = spare_job
    claim = RemoteCoordinatorClient(on_node(settings, number), StopRequests(), KEY)
    with pytest.raises(ClusterError, match=f"NODE_RANK {number} is taken"):
        claim.join()
    assert not any(node.client.is_cancelled() for node in nodes)


def test_a_spare_can_neither_stop_nor_end_the_attempt(
    spare_job: tuple[LaunchSettings, list[Node], Node, Any],
) -> None:
    _, nodes, spare, _ = spare_job
    spare.client.announce_stop(15)
    receiver = spare.client._receiver
    assert receiver
    receiver.connection.send(encode(Stop(number=15)))
    spare.run(lambda node: node.client.report(Outcome(end=End.KILLED, code=1, reason="nonsense")))
    time.sleep(0.5)
    assert not any(node.client.is_cancelled() or node.requests.received for node in nodes)


def test_a_launcher_beyond_the_spares_is_refused(spare_job: tuple[LaunchSettings, list[Node], Node, Any]) -> None:
    settings, nodes, _, _ = spare_job
    connection = connect(("127.0.0.1", settings.launcher_port), key=KEY, purpose=LAUNCHERS, number=3)
    connection.send(encode(Join(size=(4, 2, 1), host="h", num_restarts=0, time_s=time.time(), cause="")))
    assert not listen(connection, Go)
    assert not any(node.client.is_cancelled() for node in nodes)


def test_a_launcher_with_another_number_of_spares_is_refused(settings: LaunchSettings, serve: Serve) -> None:
    serve(**vars(replace(settings, spare_nodes=1)))
    with pytest.raises(ClusterError, match="2 nodes and 0 spares, but node 0 with 4, 2 and 1;"):
        RemoteCoordinatorClient(on_node(settings, 1), StopRequests(), KEY).join()


@pytest.mark.parametrize(("place", "hosts"), [(0, ("a", "b")), (2, ("a", "b")), (1, ("a", "b", "c"))])
def test_an_impossible_rank_from_node_0_is_refused(
    settings: LaunchSettings, place: int, hosts: tuple[str, ...]
) -> None:
    client = RemoteCoordinatorClient(on_node(settings, 1), StopRequests(), KEY)
    with pytest.raises(ClusterError, match="an impossible rank"):
        client._start(Go(warnings=(), cause="", attempt=1, place=place, hosts=hosts, reason=""))


def test_losses_do_not_count_as_restarts_and_are_limited() -> None:
    policy = RestartPolicy(max_restarts=0, first_delay_s=5, max_losses=1)
    lost = Outcome(end=End.KILLED, code=1, reason="disconnected", step=7)
    decision = policy.decide(lost, culprit=1, without="after the loss of node 1")
    assert (decision.again, decision.message) == (
        True,
        "restart after the loss of node 1 in 5 s (last finished step: 7)",
    )
    policy.count_earlier(1)
    assert not policy.decide(lost, culprit=2, without="after the loss of node 2").again
    policy = RestartPolicy(max_restarts=1, first_delay_s=5, max_losses=1)
    assert policy.decide(lost, culprit=1, without="after the loss of node 1").again
    policy.count_earlier(1)
    assert policy.decide(lost, culprit=2).message.startswith("restart 1 of 1")


@pytest.mark.parametrize(
    ("first", "second", "node", "is_repeat"),
    [
        (None, None, 1, True),
        (5, 5, 1, True),
        (5, None, 1, True),
        (5, 6, 1, False),
        (None, 1, 1, False),
        (5, 5, 0, False),
    ],
)
def test_when_a_node_has_failed_alone_again(first: int | None, second: int | None, node: int, is_repeat: bool) -> None:
    policy = RestartPolicy(max_restarts=5, first_delay_s=5)
    policy.decide(replace(BANG, step=first), culprit=1)
    assert policy.has_failed_alone(node, replace(BANG, step=second)) is is_repeat
    assert not policy.has_failed_alone(None, BANG)
