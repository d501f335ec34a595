"""Communication between processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[3]
END_S = 30  # in which all ranks must have ended once one is dead


class Ranks:
    """Processes that run a scenario together."""

    def __init__(self, folder: Path, work: Path, size: int, scenario: str, **variables: str) -> None:
        self.processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.unit.softnpu.hccl_rank",
                    str(folder),
                    str(work),
                    str(rank),
                    str(size),
                    scenario,
                ],
                cwd=REPO_ROOT,
                env={**os.environ, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]

    def finish(self, timeout_s: float = 120) -> list[tuple[int, str]]:
        """Return each rank's exit code and what it wrote."""
        deadline = time.monotonic() + timeout_s
        try:
            endings = [process.communicate(timeout=max(0.1, deadline - time.monotonic())) for process in self.processes]
        finally:
            self.kill()
        return [(process.returncode, "".join(texts)) for process, texts in zip(self.processes, endings, strict=True)]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("scenario", ["run_reductions", "run_copies", "run_big", "run_exchanges"])
@pytest.mark.parametrize("size", [2, 3])
def test_operations_agree_with_numpy(library_folder: Path, tmp_path: Path, scenario: str, size: int) -> None:
    for code, text in Ranks(library_folder, tmp_path, size, scenario).finish():
        assert code == 0, text


def test_groups_of_the_same_ranks_do_not_mix(library_folder: Path, tmp_path: Path) -> None:
    for code, text in Ranks(library_folder, tmp_path, 4, "run_groups").finish():
        assert code == 0, text


@pytest.mark.parametrize("scenario", ["wait_for_a_dead_rank", "wait_for_a_dead_sender"])
def test_a_dead_rank_ends_the_others(library_folder: Path, tmp_path: Path, scenario: str) -> None:
    endings = Ranks(library_folder, tmp_path, 3, scenario).finish(END_S)
    assert endings[2][0] == -9
    for rank, (code, text) in enumerate(endings[:2]):
        assert code == 1
        assert "rank 2 of" in text and f"has exited; rank {rank} waited for it in" in text


def test_what_a_finished_rank_sent_is_still_read(library_folder: Path, tmp_path: Path) -> None:
    assert [code for code, _ in Ranks(library_folder, tmp_path, 2, "read_what_a_finished_rank_sent").finish()] == [0, 0]


def test_ranks_that_disagree_are_told_apart(library_folder: Path, tmp_path: Path) -> None:
    for code, text in Ranks(library_folder, tmp_path, 2, "disagree").finish():
        assert code == 1
        assert "disagree" in text and "AllReduce of 7 float32" in text and "AllReduce of 8 float32" in text


def test_waiting_has_a_limit(library_folder: Path, tmp_path: Path) -> None:
    ranks = Ranks(library_folder, tmp_path, 2, "stay_away", HCCL_EXEC_TIMEOUT="2")
    _, text = ranks.processes[0].communicate(timeout=END_S)
    ranks.kill()
    assert "waited 2 s for rank 1 in Barrier" in text


def test_a_rank_that_never_comes_is_named(library_folder: Path, tmp_path: Path) -> None:
    ranks = Ranks(library_folder, tmp_path, 3, "run_copies", HCCL_CONNECT_TIMEOUT="3")
    ranks.processes[2].kill()
    endings = ranks.finish(END_S)
    assert "of the 3 ranks of" in endings[0][1] and "did not connect in time: 2 " in endings[0][1]
    assert endings[0][0] == endings[1][0] == 1


def test_nothing_is_left_after_kill(library_folder: Path, tmp_path: Path) -> None:
    before = set(Path("/dev/shm").iterdir())
    ranks = Ranks(library_folder, tmp_path, 3, "be_killed_while_busy")
    names = {f"softnpu-{process.pid}-" for process in ranks.processes}
    for process in ranks.processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
    assert not set(Path("/dev/shm").iterdir()) - before
    ranks.kill()
    assert not set(Path("/dev/shm").iterdir()) - before
    sockets = Path("/proc/net/unix").read_text()
    assert not any(name in sockets for name in names)
