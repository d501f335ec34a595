"""MindSpore's profiler, enabled as described in docs/multi_node.md."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
def test_profiler_writes_to_the_run_folder(
    write_config: Callable[..., Path], train: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    switch = ["--set", "profile=True", "--set", "profile_start_step=2", "--set", "profile_stop_step=3"]
    result = train(write_config(validation=None), *switch, "--stop-at-step", "4")
    assert result.returncode == 0, result.stdout + result.stderr
    assert list((tmp_path / "output/run/profile").rglob("*"))
