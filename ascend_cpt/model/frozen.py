"""Frozen weights, selected by MindFormers' `pet_config.freeze_include` and `freeze_exclude`, without an adapter."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ascend_cpt.model.parameters import list_mindformers_shapes
from ascend_cpt.model.sizes import ModelSizes

INCLUDE, EXCLUDE = "freeze_include", "freeze_exclude"


def list_frozen(sizes: ModelSizes, pet_config: Mapping[str, Any] | None) -> list[str]:
    """Return the MindFormers weight names that match a `freeze_include` pattern but no `freeze_exclude` pattern.

    Args:
        sizes: The sizes of the model.
        pet_config: The section, checked by `find_freeze_problem`.
    """
    if not pet_config:
        return []
    include, exclude = pet_config.get(INCLUDE) or [], pet_config.get(EXCLUDE) or []
    return [name for name in list_mindformers_shapes(sizes) if _matches(name, include) and not _matches(name, exclude)]


def find_freeze_problem(sizes: ModelSizes, pet_config: object) -> str:
    """Return the end of a message about a `pet_config`, which may only freeze weights, or "" if it is valid."""
    if not isinstance(pet_config, Mapping):
        return "must have freeze_include, a list of patterns of weight names"
    others = sorted(set(pet_config) - {INCLUDE, EXCLUDE})
    if others:
        return (
            f"{', '.join(others)}: LoRA and other adapters are not supported; remove the section, or keep only "
            f"{INCLUDE} and {EXCLUDE} to train some of the weights"
        )
    for key in (INCLUDE, EXCLUDE):
        patterns = pet_config.get(key)
        if key == EXCLUDE and patterns is None:
            continue
        if not isinstance(patterns, list) or not patterns or not all(isinstance(part, str) for part in patterns):
            return f"{key}: must be a list of patterns of weight names, such as ['*word_embeddings*']"
        names = list(list_mindformers_shapes(sizes))
        for pattern in patterns:
            if not any(_matches(name, [pattern]) for name in names):
                near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
                return f"{key}: {pattern!r} matches no weight of the model; the closest one is {near[0]}"
    if len(list_frozen(sizes, pet_config)) == len(list_mindformers_shapes(sizes)):
        return f"all weights would be frozen; change {INCLUDE} or {EXCLUDE}"
    return ""


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
