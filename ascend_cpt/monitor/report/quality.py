"""The report's charts of validation sets and tasks, and its table of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ascend_cpt.monitor.report.curves import make_curve, round_digits
from ascend_cpt.monitor.report.run_data import RunData
from ascend_cpt.monitor.report.tables import render_table
from ascend_cpt.monitor.rises import find_rises

Points = Sequence[Mapping[str, Any]]


def make_set_chart(name: str, runs: Sequence[RunData]) -> dict[str, Any]:
    """Return a validation set's chart: its losses with the baseline, limit and rises."""
    chart = _start_chart(f"Validation: {name} (nats per token)")
    for index, run in enumerate(runs):
        limit = run.info.get("validation", {}).get(name, {}).get("max_increase")
        _add_run(chart, index, run.validation.get(name, []), "loss", limit)
    return chart


def make_task_chart(name: str, runs: Sequence[RunData]) -> dict[str, Any]:
    """Return a task's chart: its scores with the baseline, limit and drops."""
    metrics = dict.fromkeys(run.tasks[name][-1]["metric"] for run in runs if name in run.tasks)
    chart = _start_chart(f"Task: {name} ({', '.join(metrics)})")
    for index, run in enumerate(runs):
        points = _choose_metric(run.tasks.get(name, []))
        limit = run.info.get("tasks", {}).get(name, {}).get("max_drop")
        falls = bool(points) and points[-1].get("higher_is_better", True)
        _add_run(chart, index, points, "score", -limit if limit is not None and falls else limit)
    return chart


def _choose_metric(points: Points) -> Points:
    """Return the scores for the last recorded metric, because a resumed run may watch a different one."""
    return [point for point in points if point["metric"] == points[-1]["metric"]]


def _start_chart(title: str) -> dict[str, Any]:
    return {"title": title, "form": "plain", "lines": [], "levels": []}


def _add_run(chart: dict[str, Any], index: int, points: Points, key: str, limit: float | None) -> None:
    """Add a run's curve, baseline, limit (`limit` away from the baseline), and rises, if any."""
    if not points:
        return
    steps, values = (np.array([point[name] for point in points], dtype=float) for name in ("step", key))
    if (curve := make_curve(steps, values)) is not None:
        chart["lines"].append({"run": index, "dots": True, **curve})
    base = float(values[0])
    chart["levels"].append({"run": index, "y": round_digits(base), "text": f"base {base:.4f}"})
    if limit is not None:
        level = {"run": index, "y": round_digits(base + limit), "text": f"alarm at {limit:+g}", "alarm": True}
        chart["levels"].append(level)
    marks = [{"run": index, **mark} for mark in _list_marks(points, key)]
    if marks:
        chart.setdefault("marks", []).extend(marks)


def _list_marks(points: Points, key: str) -> list[dict[str, Any]]:
    """Return a mark for the start of each rise and for each recovery."""
    marks: list[dict[str, Any]] = []
    for rise in find_rises(points, key):
        marks.append(
            {"x": rise.first_step, "y": round_digits(rise.first_value), "text": "beyond its limit", "kind": "rise"}
        )
        if rise.recovered_step is not None and rise.recovered_value is not None:
            text = f"within its limit again, after {rise.num_steps} steps"
            marks.append(
                {"x": rise.recovered_step, "y": round_digits(rise.recovered_value), "text": text, "kind": "recovery"}
            )
    return marks


def render_tasks(run: RunData) -> str:
    """Return the table of tasks, or an empty string if there are none."""
    if not run.tasks:
        return ""
    rows = []
    for name, recorded in run.tasks.items():
        points = _choose_metric(recorded)
        first, last = points[0], points[-1]
        rise = max(find_rises(points, "score"), key=lambda each: each.first_step, default=None)
        rows.append(
            (
                name,
                f"{last['metric']} ({'higher' if last.get('higher_is_better', True) else 'lower'} is better)",
                str(last.get("num_items", "")),
                f"{first['score']:.4f} (step {first['step']})",
                f"{last['score']:.4f} (step {last['step']})",
                f"{last['score'] - first['score']:+.4f}",
                "" if rise is None else _describe_drop(rise.first_step, rise.recovered_step),
            )
        )
    heads = ("Task", "Metric", "Items", "Before", "Last", "Change", "Alarm")
    return f'<div class="tables">{render_table(heads, rows)}</div>'


def _describe_drop(first_step: int, recovered_step: int | None) -> str:
    return f"ALARM since step {first_step}" if recovered_step is None else f"steps {first_step} to {recovered_step}"
