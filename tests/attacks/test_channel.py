"""Hostile peers against the job channel while rank 0 waits for rank 1: both meet as if nobody else had called."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.cluster.job.gather_server import GatherServer
from ascend_cpt.cluster.messages import server as server_module
from ascend_cpt.cluster.messages.secret import WORKERS
from tests.attacks.insiders import DROPPED, say
from tests.attacks.outsiders import OUTSIDERS
from tests.attacks.target import Target
from tests.ports import find_free_port

KEY = b"\x08" * 32
HANDSHAKE_S = 0.6
HELLO = {"kind": "Value", "topic": "connection", "value": {"rank": 1, "node": 0, "host": "x"}}
SPEECHES: dict[str, dict[str, Any] | bytes] = {
    "a value before the first message": {"kind": "Value", "topic": "data", "value": 1},
    "the first message of another rank": HELLO | {"value": {"rank": 0, "node": 0, "host": "x"}},
    "a first message without a host": HELLO | {"value": {"rank": 1, "node": 0}},
    "a first message that is a list": HELLO | {"value": [1]},
    "a topic that is a list": HELLO | {"topic": ["connection"]},
    "a failure with exit code 0": {"kind": "Failure", "reason": "bang", "exit_code": 0},
    "a failure with exit code true": {"kind": "Failure", "reason": "bang", "exit_code": True},
    "a failure with exit code 256": {"kind": "Failure", "reason": "bang", "exit_code": 256},
    "a failure without a reason": {"kind": "Failure", "exit_code": 1},
    "an answer": {"kind": "Values", "topic": "connection", "values": [1, 2]},
    "2,000 open brackets": b"[" * 2000,
    "another rank in the message": HELLO | {"rank": 0},
}


@dataclass
class Waiting:
    """Rank 0, which waits for rank 1."""

    channel: JobChannel
    server: GatherServer
    target: Target

    def assert_undisturbed(self) -> None:
        assert self.server.is_alive() and self.server.error is None and self.server._failure is None
        assert list(self.server._members) == [0]


@pytest.fixture(scope="module")
def waiting() -> Iterator[Waiting]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "HANDSHAKE_S", HANDSHAKE_S)
        address = ("127.0.0.1", find_free_port())
        results: dict[int, Any] = {}

        def run(rank: int, channel: JobChannel) -> None:
            with channel:
                results[rank] = channel.all_gather("data", rank)

        channels = [JobChannel(rank=rank, size=2, node=0, address=address, key=KEY, timeout_s=120) for rank in (0, 1)]
        first = threading.Thread(target=run, args=(0, channels[0]))
        first.start()
        while not (channels[0]._gather_server and channels[0]._gather_server._members):
            time.sleep(0.02)
        # Rank 1 is not there yet, so its number is free.
        target = Target(address=address, key=KEY, purpose=WORKERS, spare=1, handshake_s=HANDSHAKE_S)
        yield Waiting(channels[0], channels[0]._gather_server, target)
        run(1, channels[1])
        first.join(20)
        assert results == {0: [0, 1], 1: [0, 1]}


@pytest.mark.parametrize("name", OUTSIDERS)
def test_an_outsider_is_refused_and_the_processes_meet(waiting: Waiting, name: str) -> None:
    attack, expected = OUTSIDERS[name]
    assert attack(waiting.target) == expected
    waiting.assert_undisturbed()


@pytest.mark.parametrize("name", SPEECHES)
def test_a_broken_process_is_dropped_and_the_others_meet(waiting: Waiting, name: str) -> None:
    assert say(SPEECHES[name])(waiting.target) == DROPPED
    waiting.assert_undisturbed()
