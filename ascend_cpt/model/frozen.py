"""Frozen weights, selected by `cpt.trainable`, or by MindFormers' `pet_config.freeze_include` and `freeze_exclude`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ascend_cpt.model.families import VOCABULARY_TENSORS
from ascend_cpt.model.parameters import list_mindformers_shapes
from ascend_cpt.model.sizes import ModelSizes

INCLUDE, EXCLUDE = "freeze_include", "freeze_exclude"
# `embedding.word_embeddings.weight[151669:]`: the rows from 151669 on.
_ROWS = re.compile(r"(.+)\[(\d+):\]")


def list_frozen(sizes: ModelSizes, pet_config: Mapping[str, Any] | None, trainable: Sequence[str] = ()) -> list[str]:
    """Return the MindFormers names of the weights that are not trained at all.

    With `trainable`, these are the weights that match none of its patterns. Otherwise, they are the weights that match
    a `freeze_include` pattern but no `freeze_exclude` pattern.

    Args:
        sizes: The sizes of the model.
        pet_config: The section, checked by `find_freeze_problem`.
        trainable: `cpt.trainable`, checked by `find_trainable_problem`.
    """
    if trainable:
        patterns = [_split_rows(pattern)[0] for pattern in trainable]
        return [name for name in list_mindformers_shapes(sizes) if not _matches(name, patterns)]
    if not pet_config:
        return []
    include, exclude = pet_config.get(INCLUDE) or [], pet_config.get(EXCLUDE) or []
    return [name for name in list_mindformers_shapes(sizes) if _matches(name, include) and not _matches(name, exclude)]


def list_first_rows(sizes: ModelSizes, trainable: Sequence[str]) -> dict[str, int]:
    """Return the first trained row of each weight of which only the last rows are trained."""
    split = [_split_rows(pattern) for pattern in trainable]
    first_rows: dict[str, int] = {}
    for name in list_mindformers_shapes(sizes):
        rows = [row for pattern, row in split if fnmatchcase(name, pattern)]
        if rows and min(rows) > 0:
            first_rows[name] = min(rows)
    return first_rows


def find_trainable_problem(sizes: ModelSizes, trainable: Sequence[str]) -> str:
    """Return the end of a message about `cpt.trainable`, or "" if it is valid."""
    shapes = list_mindformers_shapes(sizes)
    for text in trainable:
        pattern, row = _split_rows(text)
        found = [name for name in shapes if fnmatchcase(name, pattern)]
        if not found:
            return _describe_no_match(text, pattern, list(shapes))
        others = [name for name in found if name not in VOCABULARY_TENSORS]
        if row and others:
            return f"{text!r}: [N:] works only for the embedding and the output layer, not for {others[0]}"
        if row >= sizes.vocab_size:
            return f"{text!r}: there are only {sizes.vocab_size} rows, numbered from 0"
    return ""


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
                return f"{key}: {_describe_no_match(pattern, pattern, names)}"
    if len(list_frozen(sizes, pet_config)) == len(list_mindformers_shapes(sizes)):
        return f"all weights would be frozen; change {INCLUDE} or {EXCLUDE}"
    return ""


def _split_rows(text: str) -> tuple[str, int]:
    """Return the pattern of weight names and the first trained row, which is 0 if all rows are trained."""
    match = _ROWS.fullmatch(text)
    return (match[1], int(match[2])) if match else (text, 0)


def _describe_no_match(text: str, pattern: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
    return f"{text!r} matches no weight of the model; the closest one is {near[0]}"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
