"""tools/search_mixture.py on a tiny model: an interrupted search continues, and every proxy is a run of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration.conftest import REPOSITORY, SEQ_LENGTH, make_sections, pack_rows, run_command

TOOL = [sys.executable, "tools/search_mixture.py"]
STEPS = 60


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    """Return a configuration with three sources of random rows."""
    data = tmp_path / "data"
    data.mkdir()
    paths = {name: str(pack_rows(data / name, num_rows=50 + 10 * n, pads=False)) for n, name in enumerate("abc")}
    sections = make_sections(
        Path(paths["a"]),
        tmp_path / "output",
        train_tokens=STEPS * 8 * SEQ_LENGTH,
        sources={name: {"path": path} for name, path in paths.items()},
        validation={"max_rows": 8, "sets": {name: {"path": paths[name]} for name in "ab"}},
    )
    sections["model"]["model_config"]["num_hidden_layers"] = 1
    return sections


def read_results(folder: Path) -> list[dict[str, Any]]:
    path = folder / "search.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["results"]) if path.is_file() else []


def test_a_killed_search_continues_and_proxies_are_runs_of_their_own(
    sections: dict[str, Any], tmp_path: Path, train: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    config, folder = tmp_path / "config.yaml", tmp_path / "search"
    config.write_text(yaml.safe_dump(sections), encoding="utf-8")
    command = [*TOOL, str(config), str(folder), "--proxies", "3", "--general", "a"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 300
        while not read_results(folder) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert children and not alive
    before = read_results(folder)
    assert 1 <= len(before) < 3
    result = run_command(command)
    # Three blends are too few for a fit, which the program says.
    assert result.returncode == 1 and "failed fit: a fit needs at least 4 blends" in result.stdout, result.stderr
    after = read_results(folder)
    assert after[: len(before)] == before and len(after) == 3
    assert result.stdout.count(" seed 1: a ") == 3 - len(before)
    # The last proxy was trained after others in the same process: compare with run_cpt.py.
    last = after[-1]
    blend = {name: share for name, share in zip("abc", last["shares"], strict=True) if share}
    sections["seed"] = 1
    sections["cpt"]["sources"] = {name: sections["cpt"]["sources"][name] for name in blend}
    sections["cpt"]["phases"] = [{"name": "all", "blend": blend}]
    config.write_text(yaml.safe_dump(sections), encoding="utf-8")
    result = train(config)
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "output/run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    losses = {one["name"]: one["loss"] for one in records if one["kind"] == "validation" and one["step"] == STEPS}
    assert losses == last["values"]
