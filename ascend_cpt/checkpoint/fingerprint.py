"""Compares the fingerprints (settings) and the layouts of two runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def describe_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return `key: saved → current` for every leaf that differs between two fingerprints."""
    saved_leaves, current_leaves = flatten(saved), flatten(current)
    return [
        f"{key}: {saved_leaves.get(key)!r} → {current_leaves.get(key)!r}"
        for key in sorted({*saved_leaves, *current_leaves})
        if saved_leaves.get(key) != current_leaves.get(key)
    ]


LAYOUT_SIZES = ("data_parallel", "model_parallel", "pipeline_stage", "context_parallel", "expert_parallel")
NOT_IN_OLD_LAYOUTS = {"expert_parallel": 1}
"""The values of keys that earlier versions did not record."""


def describe_layout_change(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return `key: saved → current` for what differs between two layouts.

    If the parallel sizes differ, only they are listed, because the rest depends on them.
    """
    saved = {**NOT_IN_OLD_LAYOUTS, **saved}
    sizes = [{key: layout.get(key) for key in LAYOUT_SIZES} for layout in (saved, current)]
    return describe_differences(*sizes) or describe_differences(saved, current)


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key → leaf. Items in a list of mappings are keyed by their `name`."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
            value = {str(item.get("name", index)): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            leaves.update(flatten(value, name))
        else:
            leaves[name] = list(value) if isinstance(value, tuple) else value
    return leaves


def hash_values(values: Mapping[str, Any]) -> str:
    """Return a short hash of JSON values that depends only on their content."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
