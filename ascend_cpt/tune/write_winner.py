"""Writes the fastest candidate as a configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from ascend_cpt.config.loader import load_config
from ascend_cpt.config.yaml_file import YamlTree, merge_trees
from ascend_cpt.files import write_text
from ascend_cpt.tune.compare import Comparison
from ascend_cpt.tune.overlays import Candidate
from ascend_cpt.tune.session import make_base


def write_winner(
    path: Path, config: Path, overrides: dict[str, Any], winner: tuple[Candidate, Comparison], notice: str
) -> None:
    """Write a configuration that has `config` as its base and the winner's changes.

    Args:
        path: The file to write.
        config: The user's configuration, named relative to `path`.
        overrides: Dotted key → value from the command line, included in the result.
        winner: The winning candidate and its measurements.
        notice: A line about the device, or an empty string.

    Raises:
        ConfigError: the result cannot be loaded.
    """
    candidate, comparison = winner
    base = make_base(config, overrides)
    base["base_config"] = os.path.relpath(config.absolute(), path.absolute().parent)
    sections = merge_trees(YamlTree(data=base), YamlTree(data=candidate.changes)).data
    heading = [
        f"{config.name} with {', '.join(candidate.overlays)}, found by tools/tune.py.",
        f"Measured {comparison.gain:+.1%} tokens/s (noise {comparison.noise:.1%}; rounds: {len(comparison.results)}).",
        *([notice] if notice else []),
    ]
    text = "".join(f"# {line}\n" for line in heading)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + yaml.safe_dump(sections, sort_keys=False, allow_unicode=True))
    load_config(path)
