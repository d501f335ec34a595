"""Checks of shared storage and equal data across nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.cluster.job import checks as storage
from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.cluster.job.checks import check_same, check_topology, choose_common_step
from ascend_cpt.errors import ClusterError
from tests.unit.cluster.job.test_channel import run_all


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "VISIBILITY_TIMEOUT_S", 0.2)


def make_folders(tmp_path: Path, names: list[str]) -> list[Path]:
    for name in set(names):
        (tmp_path / name).mkdir()
    return [tmp_path / name for name in names]


@pytest.mark.parametrize(
    ("names", "shared", "message"),
    [
        (["one"] * 4, True, None),
        (["a", "a", "b", "b"], False, None),
        (["a", "a", "b", "b"], True, r"node 1 \(.*\) does not see what node 0 \(.*\) writes to .*: this folder is not"),
        (["one"] * 4, False, r"node 1 \(.*\) and node 0 \(.*\) share .*, but cpt.storage.shared is false"),
    ],
)
def test_topology(tmp_path: Path, names: list[str], shared: bool, message: str | None) -> None:
    folders = make_folders(tmp_path, names)

    def work(channel: JobChannel, rank: int) -> None:
        check_topology(channel, folders[rank], shared=shared)

    for result in run_all(4, work):
        if message is None:
            assert result is None
        else:
            with pytest.raises(ClusterError, match=message):
                raise result
    assert not list(tmp_path.glob(f"*/{storage.PROBE_NAME}"))


def test_one_node_needs_no_probe(tmp_path: Path) -> None:
    assert run_all(2, lambda channel, _: check_topology(channel, tmp_path / "nowhere", shared=False)) == [None] * 2


def test_differences_are_named_with_their_node() -> None:
    facts: list[dict[str, Any]] = [{"seed": 1, "data": "x"}] * 3 + [{"seed": 1, "data": "y"}]
    results = run_all(4, lambda channel, rank: check_same(channel, "recipe", facts[rank]))
    for result in results:
        with pytest.raises(
            ClusterError, match=r"node 1 \(.*\) differs from node 0 \(.*\) in its recipe \(data: x → y\)"
        ):
            raise result
    assert run_all(2, lambda channel, rank: check_same(channel, "recipe", facts[rank])) == [None, None]


def test_the_newest_common_step() -> None:
    steps = [[10, 20, 30], [10, 20, 30], [10, 20], [10, 20]]
    for newest, lines in run_all(4, lambda channel, rank: choose_common_step(channel, steps[rank])):
        assert newest == 20
        assert len(lines) == 1 and lines[0].startswith("step 30: not complete on node 1 (")
    for newest, lines in run_all(2, lambda channel, rank: choose_common_step(channel, [[10], []][rank])):
        assert newest is None and len(lines) == 1
