"""The charts of a report as plain data, from which the page makes plotly figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ascend_cpt.monitor.goodput.account import CATEGORIES, LABELS
from ascend_cpt.monitor.heat_map import HeatMap, choose_heat_maps
from ascend_cpt.monitor.report.curves import Floats, make_curve, make_mean_curve, round_digits, value_at
from ascend_cpt.monitor.report.quality import make_set_chart, make_task_chart
from ascend_cpt.monitor.report.run_data import RunData
from ascend_cpt.monitor.rises import find_rises
from ascend_cpt.monitor.sinks import format_duration

Chart = dict[str, Any]
# Title, column, whether the axis is logarithmic where values differ much, number format.
CHARTS: tuple[tuple[str, str, bool, str], ...] = (
    ("Learning rate", "learning_rate", False, "exponent"),
    ("Gradient norm", "grad_norm", True, "plain"),
    ("Throughput (tokens/s, all devices)", "tokens_per_s", False, "count"),
    ("TFLOPS per device", "tflops_per_device", False, "plain"),
    ("MFU", "mfu", False, "percent"),
    ("Step time (s)", "step_time_s", True, "plain"),
    ("Data wait per step (s)", "data_wait_s", True, "plain"),
)
MIN_LOG_RATIO = 20
MAX_SKIPS = 1000


def list_charts(runs: Sequence[RunData]) -> list[Chart]:
    """Return the charts that the runs share, in the order in which the page shows them."""
    phases = list_phases(runs)
    charts = [_make_loss_chart(runs)]
    charts.extend(make_set_chart(name, runs) for name in dict.fromkeys(name for run in runs for name in run.validation))
    charts.extend(make_task_chart(name, runs) for name in dict.fromkeys(name for run in runs for name in run.tasks))
    for title, column, logarithmic, form in CHARTS:
        lines: list[Chart] = []
        for index, run in enumerate(runs):
            lines.extend(_draw_column(index, run, hide_first_step(run, column), smoothed=column != "learning_rate"))
        if lines:
            is_log = logarithmic and any(_spans_much(run.columns[column]) for run in runs)
            charts.append({"title": title, "log": is_log, "form": form, "lines": lines})
    for chart in charts:
        chart["phases"] = phases
    return [*charts, *_make_goodput_chart(runs)]


def _draw_column(index: int, run: RunData, values: Floats, *, smoothed: bool) -> list[Chart]:
    """Return the lines for a column: its values and, if `smoothed` and there are enough, their moving average."""
    steps = run.columns["step"]
    raw = make_curve(steps, values)
    if raw is None:
        return []
    mean = make_mean_curve(steps, values) if smoothed else None
    if mean is None:
        return [{"run": index, **raw}]
    curve, window = mean
    return [{"run": index, "raw": True, **raw}, {"run": index, "note": f"{window} steps", **curve}]


def hide_first_step(run: RunData, column: str) -> Floats:
    """Return a column. For times and rates, the first step is NaN because compilation would dominate the scale."""
    values = run.columns[column]
    if column not in ("tokens_per_s", "tflops_per_device", "mfu", "step_time_s") or len(values) < 3:
        return values
    return np.concatenate([[math.nan], values[1:]])


def _spans_much(values: Floats) -> bool:
    positive = values[np.isfinite(values) & (values > 0)]
    return bool(len(positive) and positive.max() > MIN_LOG_RATIO * positive.min())


def _make_loss_chart(runs: Sequence[RunData]) -> Chart:
    lines: list[Chart] = []
    marks: list[Chart] = []
    for index, run in enumerate(runs):
        lines.extend(_draw_column(index, run, run.columns["loss"], smoothed=True))
        marks.extend({"run": index, **mark} for mark in _list_events(run))
    return {"title": "Training loss (nats per token)", "form": "plain", "lines": lines, "marks": marks}


def _list_events(run: RunData) -> list[Chart]:
    """Return the marks on the loss curve: skipped steps, the starts and ends of alarms, and restarts."""
    steps, losses = run.columns["step"], run.columns["loss"]
    found = [(step, "skip", f"skipped: {reason}") for step, reason in list(run.skipped.items())[:MAX_SKIPS]]
    for key, named in (("loss", run.validation), ("score", run.tasks)):
        for name, points in named.items():
            for rise in find_rises(points, key):
                found.append((rise.first_step, "rise", f"{name} beyond its limit"))
                if rise.recovered_step is not None:
                    found.append((rise.recovered_step, "recovery", f"{name} within its limit again"))
    found.extend((restart.from_step, "restart", restart.describe()) for restart in run.restarts)
    return [
        {"x": step, "y": round_digits(value_at(step, steps, losses)), "text": text, "kind": kind}
        for step, kind, text in found
    ]


def list_phases(runs: Sequence[RunData]) -> list[Chart]:
    """Return the begun phases to shade, or none for a single phase or runs with different phases."""
    found = [run.info.get("phases") or [] for run in runs]
    spans = [[{key: phase[key] for key in ("name", "first_step", "stop_step")} for phase in phases] for phases in found]
    if len(spans[0]) < 2 or any(span != spans[0] for span in spans):
        return []
    last_step = max(int(run.columns["step"][-1]) for run in runs)
    begun = [phase for phase in spans[0] if phase["first_step"] < last_step]
    return [{**phase, "stop_step": min(phase["stop_step"], last_step)} for phase in begun]


def _make_goodput_chart(runs: Sequence[RunData]) -> list[Chart]:
    """Return a chart with a bar for every run with a timeline, or none."""
    known = [(index, run.goodput) for index, run in enumerate(runs) if run.goodput is not None and run.goodput.wall_s]
    if not known:
        return []
    parts = []
    for category in CATEGORIES:
        seconds = [goodput.seconds[category] for _, goodput in known]
        if any(seconds):
            parts.append(
                {
                    "label": LABELS.get(category, category),
                    "kind": category,
                    "runs": [index for index, _ in known],
                    "shares": [
                        round_digits(s / goodput.wall_s) for s, (_, goodput) in zip(seconds, known, strict=True)
                    ],
                    "texts": [format_duration(s) for s in seconds],
                }
            )
    return [{"title": "Where the wall time went (goodput)", "bars": parts, "num_bars": len(known)}]


def list_heat_maps(index: int, run: RunData) -> list[Chart]:
    """Return heat maps of each needle task's first and last scores; none if there are no needle tasks."""
    return [
        _make_heat_map(index, name, found)
        for name, records in run.tasks.items()
        for maps in choose_heat_maps(records)
        for found in maps
    ]


def _make_heat_map(index: int, name: str, found: HeatMap) -> Chart:
    return {
        "title": f"{name}: {found.metric} at step {found.step}, by depth and tokens",
        "run": index,
        "lengths": [f"{length:,}" for length in found.lengths],
        "depths": [f"{depth:.0%}" for depth in found.depths],
        "scores": [
            [round_digits(found.scores.get((length, depth), math.nan)) for length in found.lengths]
            for depth in found.depths
        ],
    }
