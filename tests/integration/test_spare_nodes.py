"""Real launchers with a spare node, or on fewer nodes. The actor of test_restarts.py stands in for training."""

from __future__ import annotations

import os
import signal

import psutil

from tests.integration.test_restarts import Job, job, wait_for

__all__ = ["job"]  # a fixture of the tests below


LIMIT_S = 300.0


def lose(job: Job, node: int) -> None:
    """Kill a launcher and its workers at once."""
    launcher = psutil.Process(job.nodes[node].pid)
    for process in [launcher, *launcher.children(recursive=True)]:
        process.kill()


def test_a_spare_replaces_a_lost_node_which_then_waits_as_a_spare(job: Job) -> None:
    job.limit_s = LIMIT_S
    for node in (2, 1, 0):
        job.start(node, total=400, options="--spare-nodes 1")
    wait_for(lambda: "node 2 is a spare: it waits until it is needed" in job.text(2), LIMIT_S)
    wait_for(lambda: job.checkpoint() >= 10 and (job.folder / "pid_1").exists(), LIMIT_S)
    lose(job, 1)
    wait_for(lambda: "a spare, takes its place" in job.text(0), LIMIT_S)
    job.start(1, total=400, options="--spare-nodes 1")
    wait_for(lambda: "node 1 waits as a spare: the job currently runs without it" in job.text(1), LIMIT_S)
    job.nodes[1].send_signal(signal.SIGTERM)
    assert job.wait(1) == 143
    assert [job.wait(0), job.wait(2)] == [0, 0], job.text(0) + job.text(2)
    assert len(job.starts()) == 4
    assert [line.split()[0] for line in job.starts()] == ["0", "0", "1", "1"]
    for node in (0, 2):
        assert f"node 1 ({os.uname().nodename}) was lost: disconnected: its launcher was killed" in job.text(node)
        assert "takes its place" in job.text(node)
    assert "restart after the loss of node 1 (" in job.text(0)
    assert "done 1" in (job.folder / "node2/output/msrun_log/node_2/worker_1.log").read_text()


def test_the_job_continues_on_the_node_that_is_left(job: Job) -> None:
    job.limit_s = LIMIT_S
    options = "--min-nodes 1 --lost-node-timeout 1"
    for node in (1, 0):
        job.start(node, total=200, options=options)
    wait_for(lambda: job.checkpoint() >= 10 and (job.folder / "pid_1").exists(), LIMIT_S)
    lose(job, 1)
    assert job.wait(0) == 0, job.text(0)
    assert "; the job continues on 1 of 2 nodes" in job.text(0)
    assert [line.split()[0] for line in job.starts()] == ["0", "0", "1"]
