"""Task kinds and metrics, and checks of a task's configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ascend_cpt.config.sections import nearest
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.tasks.schemas import SCHEMAS

METRICS: Mapping[str, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm", "bits_per_byte"),
    "continuation": ("exact", "bits_per_byte"),
    "answer_bits": ("bits_per_byte",),
    "needle": ("acc", "exact"),
}
"""The metrics of each kind; the first is the default."""
LOWER_IS_BETTER = frozenset({"bits_per_byte"})
NEEDLE = "needle"
"""The kind whose items are made from a packed dataset; `load_needle_task` loads it."""
ITEM_KEYS = ("schema", "description", "few_shot", "few_shot_path", "max_items")
"""Keys of tasks with items in files."""
NEEDLE_KEYS = ("lengths", "depths", "per_cell", "choices", "seed")


def find_task_problems(config: TaskConfig, seq_length: int | None = None) -> list[str]:
    """Return a problem, beginning with the key, for each setting that cannot work at the run's `seq_length`."""
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
    if config.kind in METRICS:
        is_needle = config.kind == NEEDLE
        problems += [
            f"{key}: has no effect on a task of kind {config.kind}; remove it"
            for key in (ITEM_KEYS if is_needle else NEEDLE_KEYS)
            if getattr(config, key) != getattr(TaskConfig, key)
        ]
        problems += _check_needle(config, seq_length) if is_needle else []
    return problems


def _check_needle(config: TaskConfig, seq_length: int | None) -> list[str]:
    problems = [
        f"lengths: {length} is more than seq_length {seq_length}; remove it, or raise seq_length"
        for length in config.lengths
        if seq_length is not None and length > seq_length
    ]
    repeated = [str(length) for length in dict.fromkeys(config.lengths) if config.lengths.count(length) > 1]
    if repeated:
        problems.append(f"lengths: {', '.join(repeated)} is listed more than once; list each length once")
    if config.choices == 1:
        problems.append("choices: 1 answer cannot be compared with others; set at least 2")
    return problems


def _check_name(key: str, name: str, known: Collection[str], problems: list[str]) -> bool:
    """Return whether a name is known. If not, add a problem."""
    if name in known:
        return True
    problems.append(f"{key}: {name!r} is unknown{nearest(name, known)}; choose from {', '.join(known)}")
    return False
