"""Checks the MindFormers sections for unknown keys and wrong types, which MindFormers does not check."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ascend_cpt.config.names import KeyPath
from ascend_cpt.config.values import parse_float
from ascend_cpt.config.yaml_file import YamlTree

KEY_TABLE_PATH = Path(__file__).with_name("mindformers_keys.json")

INT_KEYS = {
    "runner_config": ["batch_size", "epochs", "sink_size", "gradient_accumulation_steps"],
    "parallel_config": [
        "data_parallel",
        "model_parallel",
        "pipeline_stage",
        "context_parallel",
        "expert_parallel",
        "micro_batch_num",
        "gradient_aggregation_group",
    ],
    "model.model_config": [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "num_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "max_position_embeddings",
        "seq_length",
    ],
    "": ["micro_batch_interleave_num"],
}
COUNT_KEYS = {"": ["seed"], "model.model_config": ["pad_token_id"]}
TEXT_KEYS = {"": ["output_dir", "load_checkpoint", "run_mode"]}
FLOAT_KEYS = {
    "optimizer": ["learning_rate", "eps", "weight_decay"],
    "lr_schedule": ["learning_rate", "lr_end", "warmup_ratio", "warmup_lr_init"],
    "model.model_config": [
        "rms_norm_eps",
        "rope_theta",
        "initializer_range",
        "hidden_dropout",
        "attention_dropout",
        "moe_aux_loss_coeff",
        "moe_z_loss_coeff",
        "router_aux_loss_coef",
    ],
    "runner_wrapper": ["max_grad_norm"],
}
BOOL_KEYS = {
    "runner_config": ["sink_mode"],
    "parallel_config": ["use_seq_parallel", "vocab_emb_dp"],
    "model.model_config": [
        "tie_word_embeddings",
        "qk_layernorm",
        "attention_bias",
        "use_flash_attention",
        "norm_topk_prob",
    ],
    "runner_wrapper": ["use_clip_grad"],
    "": ["use_parallel"],
}
SWITCH_BY_STAGE_KEYS = {"recompute_config": ["recompute"]}


@lru_cache(maxsize=1)
def load_key_table() -> Mapping[str, Any]:
    """Return the checked-in table of the keys that MindFormers accepts."""
    table: Mapping[str, Any] = json.loads(KEY_TABLE_PATH.read_text(encoding="utf-8"))
    return table


def check_sections(sections: dict[str, Any], tree: YamlTree, problems: list[str]) -> None:
    """Add a problem for every unknown key and wrong type. Numbers written as text are converted in place."""
    table = load_key_table()
    _check_keys(sections, (), tree, table["sections"], set(table["open"]), problems)
    for names, words, convert in (
        (INT_KEYS, "a whole number above 0", _to_positive),
        (COUNT_KEYS, "a whole number of at least 0", _to_count),
        (BOOL_KEYS, "True or False", _to_bool),
        (
            SWITCH_BY_STAGE_KEYS,
            "True, False or a list with one entry (True, False or number of layers) per pipeline stage",
            _to_switch,
        ),
        (FLOAT_KEYS, "a number", parse_float),
        (TEXT_KEYS, "text", _to_text),
    ):
        _check_types(sections, tree, names, words, convert, problems)


def find_section(sections: Mapping[str, Any], dotted: str) -> Any:
    """Return the mapping at a dotted path, or None."""
    node: Any = sections
    for key in dotted.split(".") if dotted else []:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` with the most similar known name, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _check_keys(
    node: Mapping[str, Any],
    path: KeyPath,
    tree: YamlTree,
    sections: Mapping[str, list[str]],
    open_sections: set[str],
    problems: list[str],
) -> None:
    dotted = ".".join(path)
    known = sections.get(dotted)
    for key, value in node.items():
        here = (*path, str(key))
        if known is not None and key not in known:
            names = [*known, "cpt"] if not path else known
            problems.append(f"{tree.locate(here)}: {'.'.join(here)}: unknown key{nearest(str(key), names)}")
        elif isinstance(value, Mapping) and ".".join(here) not in open_sections:
            _check_keys(value, here, tree, sections, open_sections, problems)
        elif ".".join(here) in sections and value is not None and not isinstance(value, Mapping):
            problems.append(f"{tree.locate(here)}: {'.'.join(here)}: expected keys and values, got {value!r}")


def _check_types(
    sections: dict[str, Any],
    tree: YamlTree,
    names: Mapping[str, list[str]],
    words: str,
    convert: Any,
    problems: list[str],
) -> None:
    for dotted, keys in names.items():
        section = find_section(sections, dotted)
        for key in keys if isinstance(section, dict) else []:
            if section.get(key) is None:
                continue
            try:
                section[key] = convert(section[key])
            except ValueError:
                path = (*dotted.split("."), key) if dotted else (key,)
                problems.append(f"{tree.locate(path)}: {'.'.join(path)}: expected {words}, got {section[key]!r}")


def _to_positive(value: object) -> int:
    number = _to_count(value)
    if number == 0:
        raise ValueError
    return number


def _to_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError
    if value != int(value) or value < 0:
        raise ValueError
    return int(value)


def _to_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _to_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _to_switch(value: object) -> bool | list[bool | int]:
    if isinstance(value, list):
        return [item if isinstance(item, bool) else _to_count(item) for item in value]
    return _to_bool(value)
