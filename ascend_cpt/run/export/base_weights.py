"""Names a run's initial weights for `run.json` and the model card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ascend_cpt.checkpoint.locate import locate_checkpoint
from ascend_cpt.monitor.history import RUN_INFO_NAME, read_run_info
from ascend_cpt.run.resolved_run import RANDOM_INIT
from ascend_cpt.weights.hf_folder import is_hf_folder

# A model in the Hugging Face Hub cache. Other paths do not contain the model's name on the Hub.
_HUB_CACHE = re.compile(r"/models--(?P<id>[^/]+)/snapshots/[^/]+$")


def describe_base(initial_weights: str) -> dict[str, Any]:
    """Describe the initial weights: `kind` (`random`, `hugging_face`, `run`), `name`, `step`, `base_model`.

    `base_model` is the Hugging Face Hub name of a folder in the Hub cache, or of an earlier run's base model.
    """
    if initial_weights == RANDOM_INIT:
        return {"kind": "random"}
    path = Path(initial_weights)
    if is_hf_folder(path):
        base_model = find_hub_name(path)
        found = {"base_model": base_model} if base_model else {}
        return {"kind": "hugging_face", "name": base_model or path.resolve().name, **found}
    checkpoint = locate_checkpoint(path)
    root = checkpoint.folder.absolute().parent
    run_dir = root.parent
    if root.name != "checkpoint" or not (run_dir / RUN_INFO_NAME).is_file():
        return {"kind": "run", "name": path.resolve().name, "step": checkpoint.state.step}
    earlier = (read_run_info(run_dir).get("base") or {}).get("base_model")
    found = {"base_model": earlier} if earlier else {}
    return {"kind": "run", "name": run_dir.resolve().name, "step": checkpoint.state.step, **found}


def find_hub_name(folder: Path) -> str | None:
    """Return the Hub name (`Qwen/Qwen3-8B-Base`) of a folder in the Hub cache."""
    match = _HUB_CACHE.search(folder.resolve().as_posix())
    return match["id"].replace("--", "/") if match else None
