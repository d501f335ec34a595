"""The hang watchdog: a disk that does not answer is named, and a run without a hang is left alone.

The first test needs root, loop mounts and fsfreeze(8): `pytest tests/integration/test_hangs.py -m slow`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import SEQ_LENGTH, read_history
from tests.integration.test_restarts import Job, job, wait_for

__all__ = ["job"]  # a fixture

pytestmark = pytest.mark.slow
NUM_STEPS = 1000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system in a file."""
    image, folder = tmp_path / "disk.img", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    if os.getuid() or not all(map(shutil.which, ("mkfs.ext4", "mount", "fsfreeze"))):
        pytest.skip("freezing a disk needs root, mkfs.ext4, mount and fsfreeze")
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=False).returncode:
        pytest.skip("this machine does not allow loop mounts")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_worker_that_waits_for_a_disk_is_named(job: Job, disk: Path) -> None:
    (job.folder / "hang_1_7").write_text(str(disk / "file"))
    subprocess.run(["fsfreeze", "--freeze", str(disk)], check=True)
    try:
        job.start(num_nodes=1, options="--max-restarts 1 --hang-timeout 8")
        wait_for(lambda: "likely cause" in job.text())
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(disk)], check=True)
    assert job.wait() == 0, job.text()
    assert "worker 0 waits for the others in barrier (node0/actor.py:" in job.text()
    assert "worker 1 waits for a disk or a device" in job.text()
    assert re.search(r"after step 6 \(limit \d+ s\); likely cause: worker 1;", job.text())
    assert "restart 1 of 1" in job.text()


@pytest.mark.timeout(3600)
def test_no_hang_is_found_in_1000_undisturbed_steps(
    packed: Path,
    tmp_path: Path,
    write_config: Callable[..., Path],
    launch: Callable[..., subprocess.CompletedProcess[str]],
    free_ports: list[int],
) -> None:
    config = write_config(
        run_name="undisturbed",
        train_tokens=NUM_STEPS * 8 * SEQ_LENGTH,
        validation={"every": "50 steps", "sets": {"held": {"path": str(packed)}}},
        checkpoint={"every": "20 steps", "keep_last": 2},
        monitor={"print_every_steps": 100},
    )
    done = launch(
        config,
        "--output_dir",
        str(tmp_path / "output"),
        port=free_ports[0],
        log_dir=tmp_path / "log",
        env={"ASCEND_CPT_HANG_TIMEOUT_S": "15", "ASCEND_CPT_MAX_RESTARTS": "3"},
        timeout_s=3500,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "no step for" not in done.stdout + done.stderr
    assert not list((tmp_path / "log").rglob("earlier_*")), "no restart"
    history = read_history(tmp_path / "output/undisturbed")
    assert [kind for kind, *_ in history].count("step") == NUM_STEPS
