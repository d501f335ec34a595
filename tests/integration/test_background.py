"""Checkpoints written in the background: the same losses, and incomplete checkpoints are not used."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ascend_cpt.checkpoint.locate import list_complete
from ascend_cpt.monitor.goodput.timeline import FILE_NAME as TIMELINE_NAME
from ascend_cpt.monitor.goodput.timeline import read_timeline
from tests.integration.conftest import REPOSITORY, SEQ_LENGTH, read_history

Completed = subprocess.CompletedProcess[str]
NUM_STEPS = 8
# Trains with a disk on which the model file of step 4 takes very long.
SLOW_DISK = """\
import sys, time
from ascend_cpt.backend.checkpointing import shard_files
save = shard_files.save_file
def save_slowly(tensors, name, **settings):
    if "iteration_00000004" in name and "model" in name:
        time.sleep(600)
    save(tensors, name, **settings)
shard_files.save_file = save_slowly
from ascend_cpt.train import main
from ascend_cpt.errors import run_command
sys.exit(run_command(main))
"""


def test_training_continues_while_a_checkpoint_is_written(
    write_config: Callable[..., Path], train: Callable[..., Completed], tmp_path: Path
) -> None:
    settings = {"train_tokens": NUM_STEPS * 8 * SEQ_LENGTH, "validation": None}
    at_once = write_config(run_name="at_once", checkpoint={"every": "2 steps"}, **settings)
    result = train(at_once)
    assert result.returncode == 0, result.stderr
    config = write_config(checkpoint={"every": "2 steps", "background": True}, **settings)
    run_dir = tmp_path / "output/run"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_DISK, "--config", str(config)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200
    # Saving step 6 waits until step 4 is complete.
    while not (run_dir / "metrics.jsonl").is_file() or len(read_history(run_dir)) < 5:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.2)
    assert (run_dir / "checkpoint/iteration_00000004").is_dir()
    process.kill()
    process.communicate()
    complete, incomplete = list_complete(run_dir / "checkpoint")
    assert list(complete) == [2]
    saving_s = [each.end_s - each.start_s for each in read_timeline(run_dir / TIMELINE_NAME) if each.part == "saving"]
    assert saving_s and sum(saving_s) < 20, "only the time that training waits counts as saving"
    assert len(incomplete) == 1 and "the save did not finish" in incomplete[0]
    resumed = train(config)
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing at step 2" in resumed.stdout
    assert read_history(run_dir) == read_history(tmp_path / "output/at_once")
    assert list(list_complete(run_dir / "checkpoint")[0]) == [8, 6, 4]
