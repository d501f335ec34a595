"""A disk that becomes full during saving: one line of error, and the run resumes from the previous checkpoint.

Needs root to mount a small tmpfs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ascend_cpt.checkpoint.locate import list_complete
from tests.integration.conftest import SEQ_LENGTH, read_history
from tests.integration.test_nodes import NUM_STEPS, assert_all, launch_nodes, make_nodes, nodes, steps_of

__all__ = ["make_nodes", "nodes"]  # fixtures of the tests below

Completed = subprocess.CompletedProcess[str]
# Enough space for records and logs, but not for a checkpoint of 2 MB.
ROOM_BYTES = 1_000_000

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("mount"), reason="mounting a small file system needs root and mount(8)"
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this machine does not allow mounts")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, room_bytes: int = ROOM_BYTES) -> Path:
    """Leave little or no free space; return the file that fills the disk."""
    path = disk / "filler"
    path.write_bytes(bytes(shutil.disk_usage(disk).free - room_bytes))
    return path


def assert_only_step_2_is_complete(run_dir: Path) -> None:
    complete, incomplete = list_complete(run_dir / "checkpoint")
    assert list(complete) == [2], incomplete
    assert not incomplete


@pytest.mark.slow
def test_one_process(
    small_disk: Path, write_config: Callable[..., Path], train: Callable[..., Completed], tmp_path: Path
) -> None:
    config = write_config(
        train_tokens=NUM_STEPS * 8 * SEQ_LENGTH, validation=None, checkpoint={"every": "2 steps", "keep_last": 2}
    )
    assert train(config, "--output_dir", str(tmp_path / "calm")).returncode == 0
    assert train(config, "--output_dir", str(small_disk), "--stop-at-step", "2").returncode == 0
    filler = fill(small_disk)
    failed = train(config, "--output_dir", str(small_disk))
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert failed.stderr.count("\n") == 1 and "Traceback" not in failed.stdout
    folder = small_disk / "run/checkpoint/iteration_00000004"
    assert (
        f"error: {folder}: the disk is full while saving; free space, then run the same command again to resume"
        in failed.stderr
    )
    assert_only_step_2_is_complete(small_disk / "run")
    filler.unlink()
    filler = fill(small_disk, room_bytes=0)
    failed = train(config, "--output_dir", str(small_disk))
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert failed.stderr.count("\n") == 1
    assert f"error: {small_disk}/run: the disk is full while writing to the run folder; free" in failed.stderr
    filler.unlink()
    resumed = train(config, "--output_dir", str(small_disk))
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing at step 2" in resumed.stdout
    assert read_history(small_disk / "run") == read_history(tmp_path / "calm/run")


@pytest.mark.slow
def test_one_of_two_nodes(
    small_disk: Path, nodes: list[dict[str, Path]], tmp_path: Path, free_ports: list[int]
) -> None:
    calm = [tmp_path / f"calm{rank}" for rank in range(2)]
    assert_all(launch_nodes(nodes, free_ports[0], "--no-shared-storage", outputs=calm), 0)
    outputs = [tmp_path / "large", small_disk]
    started = launch_nodes(nodes, free_ports[1], "--no-shared-storage", "--stop-at-step", "2", outputs=outputs)
    assert_all(started, 0)
    filler = fill(small_disk)
    failed = launch_nodes(nodes, free_ports[2], "--no-shared-storage", outputs=outputs)
    assert_all(failed, 2, f"{small_disk}/run/checkpoint/iteration_00000004: the disk is full while saving; free space")
    assert "node 1 (" in failed[0].stderr
    assert_only_step_2_is_complete(small_disk / "run")
    filler.unlink()
    resumed = launch_nodes(nodes, free_ports[3], "--no-shared-storage", outputs=outputs)
    assert_all(resumed, 0)
    assert "continuing at step 2" in resumed[0].stdout
    for output in outputs:
        assert steps_of(output / "run") == steps_of(calm[0] / "run")
