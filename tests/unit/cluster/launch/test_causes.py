"""The cause of an interruption, which every node gets for the attempt after it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ascend_cpt.cluster.launch.arguments import LaunchSettings
from ascend_cpt.cluster.launch.coordination import coordinator_client as client_module
from ascend_cpt.cluster.launch.coordination.coordinator import Coordinator
from ascend_cpt.cluster.launch.coordination.restart_policy import End, Outcome
from ascend_cpt.cluster.launch.workers.worker_log import CAUSE_NAME, read_cause, write_cause
from tests.unit.cluster.launch.test_coordination import (
    BANG,
    CANCELLED,
    Node,
    is_start,
    on_node,
    serve,
    settings,
    start_attempt,
    wait_for,
)

__all__ = ["serve", "settings"]  # fixtures of the tests below


def test_every_node_gets_the_cause_of_a_restart(settings: LaunchSettings, serve: Callable[..., Coordinator]) -> None:
    serve(max_restarts=5)
    nodes = start_attempt(settings)
    assert [node.client.cause for node in nodes] == ["", ""]

    def fail(outcome: Outcome) -> None:
        failed = nodes[1].run(lambda node: node.client.report(outcome))
        wait_for(nodes[0].client.is_cancelled)
        assert nodes[0].client.report(CANCELLED).again
        assert failed().again
        waiting = nodes[0].run(lambda node: node.client.join())
        assert is_start(nodes[1].client.join())
        assert is_start(waiting())

    host = socket.gethostname()
    fail(BANG)
    assert [node.client.cause for node in nodes] == [f"node 1 ({host}): worker 1 failed: RuntimeError: bang"] * 2
    # This attempt finished a step, so training has recorded the first cause.
    fail(replace(BANG, end=End.KILLED, reason="worker 1 was killed", step=4))
    assert [node.client.cause for node in nodes] == [f"node 1 ({host}): worker 1 was killed"] * 2
    # This one did not.
    fail(replace(BANG, reason="hang: no step for 9 s", step=None))
    both = f"node 1 ({host}): worker 1 was killed; then node 1 ({host}): hang: no step for 9 s"
    assert [node.client.cause for node in nodes] == [both] * 2


def test_the_loss_of_a_node_is_a_cause(settings: LaunchSettings, serve: Callable[..., Coordinator]) -> None:
    first = serve(max_restarts=5)
    nodes = start_attempt(settings)
    nodes[1].client.close()
    wait_for(nodes[0].client.is_cancelled)
    assert nodes[0].client.report(replace(CANCELLED, step=3)).again
    nodes[1] = Node(on_node(settings, 1))
    waiting = nodes[0].run(lambda node: node.client.join())
    assert is_start(nodes[1].client.join())
    assert is_start(waiting())
    reason = "disconnected: its launcher was killed or the node is down"
    assert nodes[1].client.cause == nodes[0].client.cause == f"node 1 ({socket.gethostname()}): {reason}"
    # If node 0 is lost, node 1 reports the cause to the next node 0.
    nodes[0].client.close()
    first.close()
    wait_for(nodes[1].client.is_cancelled)
    assert nodes[1].client.report(CANCELLED).again
    waiting = nodes[1].run(lambda node: node.client.join())
    serve()
    again = Node(settings)
    assert is_start(again.client.join())
    assert is_start(waiting())
    assert again.client.cause == nodes[1].client.cause == client_module.LOST_NODE_0


def test_a_cause_has_no_control_characters() -> None:
    outcome = replace(BANG, lines=("Runtime\0Error: \x1b[31mbang\x1b[0m",))
    assert outcome.cause == f"{BANG.reason}: RuntimeError: bang"


def test_a_cause_that_cannot_be_kept_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cause(tmp_path, "worker 1 failed")
    assert read_cause(tmp_path) == "worker 1 failed"
    assert [path.name for path in tmp_path.iterdir()] == [CAUSE_NAME]
    assert capsys.readouterr().err == ""
    missing = tmp_path / "missing"
    write_cause(missing, "worker 1 failed")
    assert capsys.readouterr().err.startswith(f"warning: {missing / CAUSE_NAME}: No such file or directory; ")
