"""Two nodes in separate network namespaces, with the link between them cut for a while or permanently.

Needs root and ip(8): `pytest tests/integration/test_partition.py -m slow`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.integration.network import CAN_MAKE_NAMESPACES, address_of, connected_nodes, cut, mend, run_on
from tests.integration.test_restarts import Job, job

__all__ = ["job"]  # a fixture of the tests below

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CAN_MAKE_NAMESPACES, reason="network namespaces need root and ip(8)"),
]


@pytest.fixture
def network() -> Iterator[None]:
    with connected_nodes(2):
        yield


class NamespacedJob(Job):
    """A job whose nodes are connected by a link that can be cut."""

    def start(self, node: int = 0, *, num_nodes: int = 2, total: int = 30, options: str = "--max-restarts 3") -> None:
        self.address, self.prefix = address_of(0), run_on(node)
        super().start(node, num_nodes=num_nodes, total=total, options=options)


@pytest.fixture
def split_job(job: Job, network: None) -> NamespacedJob:
    return NamespacedJob(job.folder, job.environ, job.port, job.nodes, limit_s=240)


def test_a_short_outage_is_tolerated(split_job: NamespacedJob) -> None:
    for node in (0, 1):
        split_job.start(node, total=60)
    split_job.wait_for_step(5)
    cut(0)
    time.sleep(20)
    mend(0)
    assert [split_job.wait(0), split_job.wait(1)] == [0, 0], split_job.text(0) + split_job.text(1)
    assert len(split_job.starts()) == 2


def test_a_permanent_outage_ends_the_job_with_a_clear_message(split_job: NamespacedJob) -> None:
    for node in (0, 1):
        split_job.start(node, total=10000, options="--max-restarts 3 --rejoin-timeout 5")
    split_job.wait_for_step(5)
    cut(0)
    assert [split_job.wait(0), split_job.wait(1)] == [1, 1], split_job.text(0) + split_job.text(1)
    assert "sent no heartbeat for 45 s: the node or the network is down" in split_job.text(0)
    assert ") did not rejoin within 5 s; start the job again to resume" in split_job.text(0)
    assert "lost the connection to node 0" in split_job.text(1)
    assert f"node 0's launcher did not answer at {address_of(0)}:" in split_job.text(1)


def test_a_long_outage_is_followed_by_a_restart(split_job: NamespacedJob) -> None:
    for node in (0, 1):
        split_job.start(node, total=900)
    split_job.wait_for_step(5)
    cut(0)
    time.sleep(60)
    mend(0)
    assert [split_job.wait(0), split_job.wait(1)] == [0, 0], split_job.text(0) + split_job.text(1)
    assert "restart 1 of 3" in split_job.text(0)
    assert len(split_job.starts()) == 4
