"""Overlays: small configurations that each change one thing and are merged over the user's configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.config.yaml_file import BASE_KEY, YamlTree, load_yaml_tree, merge_trees
from ascend_cpt.errors import ConfigError

BASE, COMBINED = "base", "combined"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What a trial measures: the user's configuration with some overlays' changes (no overlays: the base)."""

    name: str
    overlays: tuple[str, ...]
    changes: dict[str, Any]
    """The merged keys of the overlays."""


def load_overlays(paths: Iterable[Path]) -> list[Candidate]:
    """Return a candidate for every overlay. A folder stands for its `*.yaml` files in name order.

    Raises:
        ConfigError: a file is unreadable, is empty or has `base_config`, or two overlays have the same name.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not found:
            raise ConfigError(f"{path}: has no *.yaml; give overlays or a folder with overlays")
        files += found
    overlays: dict[str, Candidate] = {}
    for file in files:
        data = load_yaml_tree(file).data
        if not data or BASE_KEY in data:
            raise ConfigError(f"{file}: an overlay must contain the keys that it changes, and no {BASE_KEY}")
        if file.stem in overlays or file.stem in (BASE, COMBINED):
            raise ConfigError(f"{file}: the name {file.stem} is already taken; rename the file")
        overlays[file.stem] = Candidate(name=file.stem, overlays=(file.stem,), changes=data)
    return list(overlays.values())


def combine(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the changes of all `candidates`. Later ones override earlier ones."""
    tree = YamlTree(data={})
    for candidate in candidates:
        tree = merge_trees(tree, YamlTree(data=candidate.changes))
    return Candidate(name=COMBINED, overlays=tuple(one.name for one in candidates), changes=tree.data)
