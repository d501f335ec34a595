"""Hostile peers against the coordinator of a job of two nodes that are in an attempt: the nodes notice nothing."""

from __future__ import annotations

import errno
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from ascend_cpt.cluster.launch.arguments import REPO_ROOT, parse_launch
from ascend_cpt.cluster.launch.coordination.coordinator import Coordinator
from ascend_cpt.cluster.launch.coordination.coordinator_client import RemoteCoordinatorClient, open_coordinator_client
from ascend_cpt.cluster.launch.coordination.restart_policy import DONE, End, Outcome, RestartPolicy
from ascend_cpt.cluster.launch.signals import StopRequests
from ascend_cpt.cluster.messages import server as server_module
from ascend_cpt.cluster.messages.secret import LAUNCHERS
from tests.attacks.insiders import INSIDERS, Attack
from tests.attacks.outsiders import OUTSIDERS
from tests.attacks.target import Target
from tests.ports import find_free_port

KEY = b"\x07" * 32
HANDSHAKE_S = 0.6
MAX_CPU_S = 3.0


@dataclass
class Job:
    """A coordinator and the clients of two nodes, in an attempt."""

    coordinator: Coordinator
    clients: list[RemoteCoordinatorClient]
    requests: list[StopRequests]
    target: Target

    def assert_undisturbed(self) -> None:
        assert self.coordinator.is_alive() and self.coordinator.failure is None and not self.coordinator._num_errors
        assert not any(client.is_cancelled() for client in self.clients)
        assert not any(request.received for request in self.requests)
        assert sorted(self.coordinator._active) == [0, 1] and not self.coordinator._joined


def run_all(functions: list) -> list:
    results: list = [None] * len(functions)

    def work(index: int) -> None:
        results[index] = functions[index]()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "HANDSHAKE_S", HANDSHAKE_S)
        port = find_free_port()
        words = ["run_cpt.py", "4", "2", "127.0.0.1", str(port), "0", "--max-restarts", "2"]
        settings = replace(parse_launch(words, {}, REPO_ROOT), cluster_timeout_s=20)
        coordinator = Coordinator(settings, RestartPolicy(2, 0), KEY)
        coordinator.start()
        requests = [StopRequests(), StopRequests()]
        clients = [RemoteCoordinatorClient(replace(settings, node_rank=rank), requests[rank], KEY) for rank in range(2)]
        assert [start.place for start in run_all([client.join for client in clients])] == [0, 1]
        address = ("127.0.0.1", settings.launcher_port)
        target = Target(address=address, key=KEY, purpose=LAUNCHERS, spare=99, handshake_s=HANDSHAKE_S)
        made = Job(coordinator, clients, requests, target)
        yield made
        # After all attacks the job ends as it would have without them.
        made.assert_undisturbed()
        decisions = run_all([lambda client=client: client.report(DONE) for client in clients])
        assert [(decision.again, decision.code) for decision in decisions] == [(False, 0)] * 2
        for client in clients:
            client.close()
        coordinator.close()
        assert not coordinator.is_alive()


def check_attack(job: Job, attack: Attack, expected: str) -> None:
    start_s = time.process_time()
    assert attack(job.target) == expected
    assert time.process_time() - start_s < MAX_CPU_S
    job.assert_undisturbed()


@pytest.mark.parametrize("name", OUTSIDERS)
def test_an_outsider_is_refused_and_the_job_goes_on(job: Job, name: str) -> None:
    check_attack(job, *OUTSIDERS[name])


@pytest.mark.parametrize("name", INSIDERS)
def test_a_broken_node_is_dropped_and_the_job_goes_on(job: Job, name: str) -> None:
    check_attack(job, *INSIDERS[name])


def test_no_free_descriptor(job: Job) -> None:
    """The coordinator does not spin, and serves again when descriptors are free."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    callers = [socket.socket() for _ in range(40)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(caller.fileno() for caller in callers) + 1, hard))
    held = []
    try:
        while True:
            try:
                held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError as error:
                assert error.errno == errno.EMFILE
                break
        start_s = time.process_time()
        for caller in callers:
            caller.connect(job.target.address)
        time.sleep(1.5)
        assert time.process_time() - start_s < 0.5
        job.assert_undisturbed()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for caller in callers:
            caller.close()
    time.sleep(server_module.ACCEPT_PAUSE_S)
    assert OUTSIDERS["an HTTP request"][0](job.target) == "closed after the greeting"
    job.assert_undisturbed()


def test_the_number_of_hostile_peers() -> None:
    assert len(OUTSIDERS) + len(INSIDERS) >= 40


def test_a_coordinator_that_fails_is_noticed_and_started_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = find_free_port()
    words = ["run_cpt.py", "4", "2", "127.0.0.1", str(port), "0", "--max-restarts", "2", "--restart-delay", "0"]
    settings = replace(parse_launch(words, {}, REPO_ROOT), cluster_timeout_s=20)
    with open_coordinator_client(settings, StopRequests(), KEY) as first:
        second = RemoteCoordinatorClient(replace(settings, node_rank=1), StopRequests(), KEY)
        assert [start.place for start in run_all([first.join, second.join])] == [0, 1]

        def fail() -> None:
            raise RuntimeError("bang")

        monkeypatch.setattr(first._ensure_coordinator.__self__.coordinator, "_serve_once", fail)
        deadline_s = time.monotonic() + 2
        while not (first.is_cancelled() and second.is_cancelled()):
            assert time.monotonic() < deadline_s, "the nodes do not notice that the coordinator is gone"
            time.sleep(0.02)
        cancelled = Outcome(end=End.CANCELLED, code=1)
        assert [client.report(cancelled).again for client in (first, second)] == [True, True]
        assert [start.place for start in run_all([first.join, second.join])] == [0, 1]
        decisions = run_all([lambda: first.report(DONE), lambda: second.report(DONE)])
        assert [decision.code for decision in decisions] == [0, 0]
        second.close()
    assert "the coordinator failed (RuntimeError: bang) and is being restarted" in capsys.readouterr().err


def test_the_coordinator_listens_on_one_address_only(job: Job) -> None:
    other = ("127.0.0.2", job.target.address[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(other, timeout=2)
