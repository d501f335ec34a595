"""Writes a merged model's card (README.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ascend_cpt.run.export.base_weights import find_hub_name
from ascend_cpt.weights.merge.merge import RECORD_NAME, Merge
from ascend_cpt.weights.merge.methods import SLERP
from ascend_cpt.weights.merge.recipe import Values


def make_card(target: Path, merge: Merge, values: Values) -> str:
    """Return the model card of the merged model in `target`."""
    recipe = merge.recipe
    hub_names = [name for path in recipe.inputs if (name := find_hub_name(path))]
    front: dict[str, Any] = {"library_name": "transformers"}
    if hub_names:
        front.update(base_model=list(dict.fromkeys(hub_names)), base_model_relation="merge")
    front["tags"] = ["ascend_cpt", "merge"]
    rows = [] if recipe.base is None else [(_name(recipe.base), "base")]
    if recipe.method == SLERP:
        rows += [(_name(path), f"t = {values.t:g}") for path in recipe.models]
    else:
        rows += [(_name(path), f"{weight:g}") for path, weight in zip(recipe.models, values.weights, strict=True)]
    normalized = ", weights divided by their sum" if recipe.normalize else ""
    lines = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n",
        f"# {target.resolve().name}\n",
        f"Merged by ascend_cpt with the method {recipe.method}{normalized}. Configuration and tokenizer are those of "
        f"{_name(merge.like.path)}. `{RECORD_NAME}` contains all parameters and checksums of the merged weights.\n",
        "| model | weight |\n| --- | --- |",
        *(f"| {name.replace('|', chr(92) + '|')} | {weight} |" for name, weight in rows),
    ]
    return "\n".join(lines) + "\n"


def _name(folder: Path) -> str:
    """Return the name of a model on the Hub, or else the name of its folder."""
    return find_hub_name(folder) or folder.resolve().name
