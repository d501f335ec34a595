"""tools/tune.py with real trials on a CPU, and the compile cache of a run that is killed, resumed and changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascend_cpt.config.loader import load_config
from tests.integration.conftest import REPOSITORY, make_sections, run_command

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "tools/tune.py"]


def write(path: Path, sections: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(sections, sort_keys=False))
    return path


@pytest.mark.timeout(1800)
def test_session_on_a_cpu(packed: Path, tmp_path: Path) -> None:
    config = write(tmp_path / "run.yaml", make_sections(packed, tmp_path / "output"))
    smaller = write(tmp_path / "smaller.yaml", {"model": {"model_config": {"vocab_size": 512, "intermediate_size": 8}}})
    broken = write(tmp_path / "broken.yaml", {"cpt": {"schedule": {"kind": "sawtooth"}}})
    command = [*COMMAND, str(config), "--steps", "5", "--warmup-steps", "1", "--rounds", "2"]
    command += ["--overlays", str(smaller), str(broken), "--folder", str(tmp_path / "work")]
    command += ["--write", str(tmp_path / "tuned.yaml")]
    environment = {**os.environ, "ASCEND_CPT_PYTHON": sys.executable}
    session = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "work/trials/smaller_1/console.txt").exists():
        assert session.poll() is None
        time.sleep(0.1)
    session.send_signal(signal.SIGINT)
    assert session.wait(60) == 130
    kept = (tmp_path / "work/results/base_1.json").read_text()
    result = run_command(command, timeout_s=1500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "work/results/base_1.json").read_text() == kept
    assert "dropped broken: error: " in result.stdout and "sawtooth" in result.stdout
    assert "Measured on a CPU; the results do not apply to NPUs." in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith(("base ", "smaller "))]
    assert {row[0] for row in rows} == {"base", "smaller"}
    assert not (tmp_path / "output").exists()
    assert not list((tmp_path / "work").rglob("*.safetensors"))
    if (tmp_path / "tuned.yaml").exists():
        assert load_config(tmp_path / "tuned.yaml").mindformers["model"]["model_config"]["vocab_size"] == 512


def read_losses(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}


@pytest.mark.timeout(1800)
def test_compile_cache(packed: Path, tmp_path: Path) -> None:
    """A run with a cache, killed after step 4 and continued, has the losses of one without; so has a changed one."""

    def train(name: str, stop: int, *changes: str, cache: bool = True) -> tuple[dict[int, float], str]:
        checkpoint = {"every": "2 steps"}
        sections = make_sections(packed, tmp_path / name, compile_cache=cache, checkpoint=checkpoint)
        config = write(tmp_path / f"{name}.yaml", sections)
        command = [sys.executable, "run_cpt.py", "--config", str(config), "--stop-at-step", str(stop)]
        result = run_command([*command, *(word for change in changes for word in ("--set", change))])
        assert result.returncode == 0, result.stdout + result.stderr
        return read_losses(tmp_path / name / "run"), result.stdout

    first, text = train("cached", 4)
    assert "the graph is saved in" in text and "first step after" in text
    (tmp_path / "cached/run/checkpoint/iteration_00000004/cpt_state.json").unlink()  # as after a crash
    resumed, text = train("cached", 6)
    assert "the graph is loaded from" in text
    assert resumed == train("whole", 6, cache=False)[0] and first == {step: resumed[step] for step in range(1, 5)}
    # A changed run in the same folder: its checkpoints are removed, the cache stays.
    shutil.rmtree(tmp_path / "cached/run/checkpoint")
    change = "optimizer.weight_decay=50"
    changed, text = train("cached", 3, change)
    assert "the graph is saved in" in text
    assert changed == train("changed", 3, change, cache=False)[0] and changed[3] != resumed[3]
