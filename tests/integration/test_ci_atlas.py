"""The Atlas CI without NPUs: its command lines, and whether what they train is legal on eight devices."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.integration.conftest import REPOSITORY, run_command


def test_every_command_of_a_dry_run_is_legal(packed: Path, tmp_path: Path) -> None:
    environ = {"DRY_RUN": "1", "CI_DATASET": str(packed), "CI_FOLDER": str(tmp_path)}
    result = run_command(["bash", "scripts/ci_atlas.sh", "-k", "qwen3"], env=environ)
    assert result.returncode == 0, result.stderr
    steps, _, commands = result.stdout.partition("commands that the tests would run:\n")
    assert steps.splitlines() == [
        f"+ {sys.executable} tools/doctor.py --local-workers 8",
        "+ bash scripts/prepare_sample.sh",
        f"+ {sys.executable} -m pytest -m npu -v -rs tests/npu tests/unit/cluster -k qwen3",
    ]
    lines = [shlex.split(line) for line in commands.splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert line[:2] == ["bash", f"{REPOSITORY}/scripts/msrun_launcher.sh"]
        assert line[3] == "8"
        launch = run_command(line, env={"DRY_RUN": "1"})
        assert launch.returncode == 0, launch.stderr
        assert "--worker_num=8 --local_worker_num=8" in launch.stdout
        plan = run_command([sys.executable, *shlex.split(line[2]), "--dry-run", "--world-size", "8"])
        assert plan.returncode == 0, plan.stderr
        assert "random weights" in plan.stdout
