"""Every shipped overlay changes one thing, with keys that the program accepts, in configurations of every family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ascend_cpt.config.loader import load_config
from ascend_cpt.run.planning.assumed_run import choose_world_size, resolve_without_data
from ascend_cpt.tune.overlays import load_overlays
from ascend_cpt.tune.trial import write_config

REPO_ROOT = Path(__file__).resolve().parents[3]
FOLDER = REPO_ROOT / "configs" / "tuning"
OVERLAYS = {one.name: one for one in load_overlays([FOLDER])}


def count_leaves(node: object) -> int:
    return sum(map(count_leaves, node.values())) if isinstance(node, dict) else 1


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_is_accepted(name: str, tmp_path: Path) -> None:
    config = load_config(write_config(OVERLAYS[name], tmp_path, REPO_ROOT / "configs/llama3/cpt_llama3_70b.yaml"))
    run = resolve_without_data(config, choose_world_size(config, None, 8))
    assert not run.config.cpt.checkpoint.save and run.config.cpt.validation is None
    # select_recompute has no effect while everything is recomputed, and an offset depends on the number of parts.
    assert count_leaves(OVERLAYS[name].changes) == (2 if name in ("select_recompute", "interleave") else 1)
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")


def test_speed_up_files_are_used() -> None:
    used = {str((one.changes.get("context") or {}).get("ascend_config", {}).get("parallel_speed_up_json_path"))
            for one in OVERLAYS.values()} - {"None"}  # fmt: skip
    files = sorted((FOLDER / "speed_up").glob("*.json"))
    assert used == {str(path.relative_to(REPO_ROOT)) for path in files}
    assert all(len(json.loads(path.read_text())) == 1 for path in files)
