"""JobChannel: all_gather, propagation of failures, timeouts."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.cluster.job import channel as channel_module
from ascend_cpt.cluster.job.channel import JobChannel, join_job
from ascend_cpt.errors import ClusterError, ConfigError
from tests.ports import find_free_port

REPO_ROOT = Path(__file__).resolve().parents[4]
KEY = b"k" * 32


def run_all(size: int, work: Callable[[JobChannel, int], Any], *, timeout_s: float = 10.0) -> list[Any]:
    """Run `work` for each rank, two on a node, and return the result or the error of each."""
    port = find_free_port()

    def run(rank: int) -> Any:
        try:
            channel = JobChannel(
                rank=rank, size=size, node=rank // 2, address=("127.0.0.1", port), key=KEY, timeout_s=timeout_s
            )
            with channel as channel:
                return work(channel, rank)
        except (ClusterError, ConfigError, RuntimeError) as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def test_all_gather_over_several_rounds() -> None:
    def work(channel: JobChannel, rank: int) -> list[Any]:
        rounds = []
        for number in range(20):
            if rank % 3 == number % 3:
                time.sleep(0.002)
            rounds.append(channel.all_gather(f"round {number}", [rank, number]))
        return rounds

    expected = [[[rank, number] for rank in range(6)] for number in range(20)]
    assert run_all(6, work) == [expected] * 6


def test_long_values() -> None:
    text = "x" * 500_000
    assert run_all(4, lambda channel, _: len(channel.all_gather("much", text))) == [4] * 4


def test_first_local_rank() -> None:
    assert run_all(4, lambda channel, _: channel.first_local_rank) == [0, 0, 2, 2]


def test_a_failure_reaches_all_with_its_node() -> None:
    def work(channel: JobChannel, rank: int) -> list[Any]:
        if rank == 3:
            raise ConfigError("x.yaml:3: cpt.seq_length: missing")
        return channel.all_gather("data", rank)

    results = run_all(4, work)
    assert isinstance(results[3], ConfigError)
    for error in results[:3]:
        assert isinstance(error, ClusterError)
        assert str(error) == f"node 1 ({socket.gethostname()}): x.yaml:3: cpt.seq_length: missing"


def test_ranks_may_connect_late() -> None:
    def work(channel: JobChannel, rank: int) -> list[Any]:
        return channel.all_gather("data", rank)

    port = find_free_port()

    def run(rank: int) -> Any:
        if rank == 1:
            time.sleep(0.5)
        try:
            with JobChannel(rank=rank, size=2, node=rank, address=("127.0.0.1", port), key=KEY, timeout_s=2) as channel:
                return work(channel, rank)
        except ClusterError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [[0, 1], [0, 1]]


def test_exit_codes_distinguish_user_errors_from_crashes() -> None:
    def work(channel: JobChannel, rank: int) -> list[Any]:
        if rank == 1:
            raise ConfigError("wrong") if size == 2 else RuntimeError("crashed")
        return channel.all_gather("data", rank)

    for size, code in ((2, 2), (3, 1)):
        assert [error.exit_code for error in run_all(size, work) if isinstance(error, ClusterError)] == [code] * (
            size - 1
        )


@pytest.mark.parametrize("exiting_waits_s", [0.0, 0.3])
@pytest.mark.parametrize("other_waits_s", [0.0, 0.15])
def test_a_rank_that_exits_without_an_error(exiting_waits_s: float, other_waits_s: float) -> None:
    def work(channel: JobChannel, rank: int) -> list[Any]:
        time.sleep(exiting_waits_s if rank == 1 else other_waits_s)
        return [] if rank == 1 else channel.all_gather("data", rank)

    results = run_all(3, work)
    reason = f"rank 1 on node 0 ({socket.gethostname()}) ended without an error message while others waited for it"
    assert [str(results[rank]).partition(";")[0] for rank in (0, 2)] == [reason] * 2


def test_rank_0_may_exit_right_after_the_last_all_gather() -> None:
    script = """
import sys
from ascend_cpt.cluster.job.channel import JobChannel
rank, size, port = map(int, sys.argv[1:])
with JobChannel(rank=rank, size=size, node=0, address=("127.0.0.1", port), key=b"k" * 32, timeout_s=60) as channel:
    assert len(channel.all_gather("much", "x" * 20_000)) == size
"""
    size, port = 12, find_free_port()
    command = [sys.executable, "-c", script]
    ranks = [subprocess.Popen([*command, str(rank), str(size), str(port)], cwd=REPO_ROOT) for rank in range(size)]
    assert [rank.wait() for rank in ranks] == [0] * size


def test_nobody_can_connect_once_all_have_joined() -> None:
    def work(channel: JobChannel, rank: int) -> list[Any]:
        assert channel._address is not None
        channel.all_gather("first", rank)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(channel._address)
        return channel.all_gather("second", rank)

    assert run_all(2, work) == [[0, 1]] * 2


def test_a_process_without_a_key_is_refused() -> None:
    environ = {"MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": "8118"}
    with pytest.raises(ClusterError, match="has no job key; start it with scripts/msrun_launcher.sh"):
        join_job(0, 2, environ)
    assert join_job(0, 2, environ | {"ASCEND_CPT_INSECURE": "1"}).rank == 0


def test_processes_with_different_keys_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "LINGER_S", 0.3)
    address = ("127.0.0.1", find_free_port())

    def run(rank: int) -> str:
        key = b"k" * 32 if rank == 0 else b"l" * 32
        with pytest.raises(ClusterError) as caught:
            JobChannel(rank=rank, size=2, node=rank, address=address, key=key, timeout_s=1).__enter__()
        return str(caught.value)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    assert re.search(r"not all 2 processes reached .* \(refused connections without the job's secret: \d+\)", first)
    assert "refuses this process" in second and "the nodes have different job secrets" in second


def test_an_ipv6_address() -> None:
    address = ("[::1]", find_free_port())

    def run(rank: int) -> list[Any]:
        with JobChannel(rank=rank, size=2, node=rank, address=address, key=KEY, timeout_s=5) as channel:
            return channel.all_gather("data", rank)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [[0, 1]] * 2


def test_a_rank_that_never_answers() -> None:
    def work(channel: JobChannel, rank: int) -> list[Any]:
        if rank == 1:
            time.sleep(1.0)
            return []
        return channel.all_gather("data", rank)

    results = run_all(2, work, timeout_s=0.3)
    assert isinstance(results[0], ClusterError)
    assert "not all 2 processes reached the check 'data' within 0 s" in str(results[0])


def test_a_rank_that_never_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "LINGER_S", 0.3)
    channel = JobChannel(rank=0, size=2, node=0, address=("127.0.0.1", find_free_port()), key=KEY, timeout_s=0.3)
    with pytest.raises(ClusterError, match="not all 2 processes reached the check 'connection' within 0 s"):
        channel.__enter__()


def test_processes_at_different_checks() -> None:
    def work(channel: JobChannel, rank: int) -> list[Any]:
        if rank == 1:
            time.sleep(0.3)
        return channel.all_gather("software" if rank == 0 else "recipe", rank)

    expected = (
        "rank 1 is at the check 'recipe' while the others are at 'software'; start all nodes with the same version, "
        "command and configuration"
    )
    assert [str(error) for error in run_all(2, work)] == [expected] * 2


def test_rank_0_is_unreachable() -> None:
    with pytest.raises(ClusterError, match=r"cannot reach rank 0 at 127.0.0.1:\d+ within 0 s"):
        JobChannel(rank=1, size=2, node=1, address=("127.0.0.1", find_free_port()), key=KEY, timeout_s=0.3).__enter__()


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = ("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ClusterError, match="another job may be using it"):
            JobChannel(rank=0, size=2, node=0, address=address, key=KEY, timeout_s=1).__enter__()


def test_a_single_process() -> None:
    with join_job(0, 1, {}) as channel:
        assert channel.all_gather("data", {"x": 1}) == [{"x": 1}]
        assert channel.is_first_on_node
