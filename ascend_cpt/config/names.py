"""Configuration key names used by other programs, which are renamed to this program's when a file is read.

They come from PAI's sample configuration, except for MindFormers' `warmup_ratio`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ascend_cpt.errors import ConfigError

KeyPath = tuple[str, ...]


def _to_steps(value: Any) -> Any:
    """A save interval in PAI is a number of steps."""
    return f"{value} steps" if isinstance(value, int) and not isinstance(value, bool) else value


def _keep(value: Any) -> Any:
    return value


ALIASES: dict[KeyPath, tuple[KeyPath, Callable[[Any], Any]]] = {
    ("cpt", "job_name"): (("cpt", "run_name"), _keep),
    ("cpt", "sequence_length"): (("cpt", "seq_length"), _keep),
    ("cpt", "learning_rate"): (("cpt", "schedule", "peak_lr"), _keep),
    ("cpt", "min_learning_rate"): (("cpt", "schedule", "final_lr"), _keep),
    ("cpt", "warmup_tokens"): (("cpt", "schedule", "warmup_tokens"), _keep),
    ("cpt", "save_interval"): (("cpt", "checkpoint", "every"), _to_steps),
    ("cpt", "batch_size"): (("runner_config", "batch_size"), _keep),
    ("cpt", "schedule", "warmup_ratio"): (("cpt", "schedule", "warmup_share"), _keep),
}


def rename_keys(data: dict[str, Any], origins: dict[KeyPath, str]) -> None:
    """Rename the keys of one file or the command line in place. `origins` has each key's location.

    Raises:
        ConfigError: a key is set under both names.
    """
    for old, (new, convert) in ALIASES.items():
        parent = _find(data, old[:-1])
        if parent is None or old[-1] not in parent:
            continue
        target = data
        for depth, key in enumerate(new[:-1], start=1):
            inner = target.setdefault(key, {})
            if not isinstance(inner, dict):
                return  # not a mapping; the type check reports it
            origins.setdefault(new[:depth], origins.get(old, ""))
            target = inner
        if new[-1] in target:
            raise ConfigError(
                f"{origins.get(old, 'configuration')}: {'.'.join(old)} and {'.'.join(new)} "
                f"({origins.get(new, 'configuration')}) are the same setting; keep one"
            )
        target[new[-1]] = convert(parent.pop(old[-1]))
        origins[new] = origins.pop(old, "configuration")


def _find(data: dict[str, Any], path: KeyPath) -> dict[str, Any] | None:
    node: Any = data
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None
