"""Kinds and metrics of tasks, and the checks of a task's configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ascend_cpt.config.sections import nearest
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.tasks.schemas import SCHEMAS

METRICS: Mapping[str, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm", "bits_per_byte"),
    "continuation": ("exact", "bits_per_byte"),
    "answer_bits": ("bits_per_byte",),
}
"""The metrics of each kind; the first is the default."""
LOWER_IS_BETTER = frozenset({"bits_per_byte"})


def find_task_problems(config: TaskConfig) -> list[str]:
    """Return a problem, beginning with the key, for each setting that cannot work."""
    problems: list[str] = []
    _check_name("kind", config.kind, METRICS, problems)
    if config.schema is not None:
        _check_name("schema", config.schema, SCHEMAS, problems)
    if config.metric is not None:
        known = dict.fromkeys(metric for metrics in METRICS.values() for metric in metrics)
        if _check_name("metric", config.metric, known, problems):
            metrics = METRICS.get(config.kind, known)
            if config.metric not in metrics:
                problems.append(f"metric: {config.kind} has no {config.metric}; choose from {', '.join(metrics)}")
    if config.few_shot and config.few_shot_path is None:
        problems.append(f"few_shot: {config.few_shot} examples need few_shot_path; set it, or set few_shot to 0")
    if config.schema == "lambada" and config.kind == "multiple_choice":
        problems.append("kind: lambada has no choices; use continuation or answer_bits")
    return problems


def _check_name(key: str, name: str, known: Collection[str], problems: list[str]) -> bool:
    """Return whether a name is known; if not, add a problem."""
    if name in known:
        return True
    problems.append(f"{key}: {name!r} is unknown{nearest(name, known)}; choose from {', '.join(known)}")
    return False
