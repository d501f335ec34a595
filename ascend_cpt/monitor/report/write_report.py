"""Writes a self-contained HTML report about one or several runs. The browser draws the charts."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ascend_cpt.config.values import format_count
from ascend_cpt.files import write_text
from ascend_cpt.monitor.experts.load import describe_experts
from ascend_cpt.monitor.goodput.account import Goodput
from ascend_cpt.monitor.record import Record
from ascend_cpt.monitor.report.heat_tables import render_heat_maps
from ascend_cpt.monitor.report.page import PAGE
from ascend_cpt.monitor.report.quality import make_set_chart, make_task_chart, render_tasks
from ascend_cpt.monitor.report.run_data import Floats, RunData, load_run, make_curve, round_digits, smooth
from ascend_cpt.monitor.sinks import format_duration

REPORT_NAME = "report.html"
# Title, column, whether the axis is logarithmic, number format.
CHARTS: tuple[tuple[str, str, bool, str], ...] = (
    ("Learning rate", "learning_rate", False, "exponent"),
    ("Gradient norm", "grad_norm", True, "plain"),
    ("Throughput (tokens/s, all devices)", "tokens_per_s", False, "count"),
    ("TFLOPS per device", "tflops_per_device", False, "plain"),
    ("MFU", "mfu", False, "percent"),
    ("Step time (s)", "step_time_s", True, "plain"),
    ("Data wait per step (s)", "data_wait_s", True, "plain"),
)


def write_report(run_dirs: Sequence[Path], output: Path) -> None:
    """Write the report of these runs atomically.

    Raises:
        DataError: when a folder contains no run, or damaged records.
    """
    page = render_report([load_run(run_dir) for run_dir in run_dirs])
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page)


class ReportSink:
    """Writes the report to the run folder when the run ends or stops. It must be closed after the other sinks."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def write(self, record: Record) -> None:
        """Do nothing, because the report is made from metrics.jsonl."""

    def close(self) -> None:
        """Write the report."""
        write_report([self._run_dir], self._run_dir / REPORT_NAME)


def render_report(runs: Sequence[RunData]) -> str:
    """Return the report of some runs as HTML."""
    names = _make_names_unique([run.name for run in runs])
    title = names[0] if len(names) == 1 else f"{len(names)} runs"
    data = {"runs": names, "tokens_per_step": [_tokens_per_step(run) for run in runs], "charts": _list_charts(runs)}
    # A `<` in a name could end the script element or begin a comment inside it.
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    sections = "".join(
        f'<section class="run"><h2><i class="key" style="--run:var(--c{index % 6})"></i>{html.escape(name)}</h2>'
        f"{_render_summary(run)}{render_tasks(run)}{render_heat_maps(run)}{_render_account(run)}</section>"
        for index, (name, run) in enumerate(zip(names, runs, strict=True))
    )
    parts = {"@TITLE@": html.escape(title), "@SECTIONS@": sections, "@DATA@": embedded}
    # Replace in one pass, because a name can contain a placeholder.
    return re.sub("|".join(parts), lambda match: parts[match.group()], PAGE)


def _make_names_unique(names: Sequence[str]) -> list[str]:
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _tokens_per_step(run: RunData) -> float:
    return float(run.columns["tokens"][-1] / run.columns["step"][-1])


def _list_charts(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    charts = [_make_loss_chart(runs)]
    phases = _phases(runs)
    charts.extend(
        make_set_chart(name, runs, phases) for name in dict.fromkeys(name for run in runs for name in run.validation)
    )
    charts.extend(
        make_task_chart(name, runs, phases) for name in dict.fromkeys(name for run in runs for name in run.tasks)
    )
    for title, column, logarithmic, form in CHARTS:
        lines = [
            line
            for index, run in enumerate(runs)
            for line in _draw_column(index, run, _hide_first_step(run, column), smoothed=column != "learning_rate")
        ]
        if lines:
            charts.append({"title": title, "log": logarithmic, "form": form, "lines": lines, "phases": phases})
    return charts


def _draw_column(index: int, run: RunData, values: Floats, *, smoothed: bool) -> list[dict[str, Any]]:
    """Return the lines for a column: its values and, if `smoothed` and there are enough, their moving average."""
    steps = run.columns["step"]
    raw = make_curve(steps, values)
    if raw is None:
        return []
    means, window = smooth(values)
    curve = make_curve(steps, means) if smoothed and window > 1 else None
    if curve is None:
        return [{"run": index, **raw}]
    return [{"run": index, "raw": True, **raw}, {"run": index, "note": f"{window} steps", **curve}]


def _hide_first_step(run: RunData, column: str) -> Floats:
    """Return a column. For times and rates, the first step is NaN because compilation would dominate the scale."""
    values = run.columns[column]
    if column not in ("tokens_per_s", "tflops_per_device", "mfu", "step_time_s") or len(values) < 3:
        return values
    return np.concatenate([[math.nan], values[1:]])


def _make_loss_chart(runs: Sequence[RunData]) -> dict[str, Any]:
    lines: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    for index, run in enumerate(runs):
        steps, losses = run.columns["step"], run.columns["loss"]
        lines.extend(_draw_column(index, run, losses, smoothed=True))
        loss_at = dict(zip(steps, losses, strict=True)) if run.skipped else {}
        marks.extend(
            {"run": index, "x": step, "y": round_digits(loss_at.get(step, math.nan)), "text": f"skipped: {reason}"}
            for step, reason in list(run.skipped.items())[:1000]
        )
    title = "Training loss (nats per token)"
    return {"title": title, "form": "plain", "lines": lines, "marks": marks, "phases": _phases(runs)}


def _phases(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return the phases to shade, or none for a single phase or runs with different phases."""
    found = [run.info.get("phases") or [] for run in runs]
    spans = [[{key: phase[key] for key in ("name", "first_step", "stop_step")} for phase in phases] for phases in found]
    return spans[0] if len(spans[0]) > 1 and all(span == spans[0] for span in spans) else []


def _render_summary(run: RunData) -> str:
    columns, info = run.columns, run.info
    steps, losses = columns["step"], columns["loss"]
    times = columns["step_time_s"]
    facts = [
        (
            "Model",
            f"{info['model']}, {format_count(info.get('num_parameters', 0))} parameters" if "model" in info else "",
        ),
        ("Devices", f"{info['num_devices']} × {info.get('device_name', '?')}" if "num_devices" in info else ""),
        ("Steps", f"{int(steps[-1]):,} of {int(columns['total_steps'][-1]):,}"),
        ("Tokens", f"{format_count(int(columns['tokens'][-1]))} ({format_count(_tokens_per_step(run))} per step)"),
        ("Training time", f"{format_duration(float(np.nansum(times)))}, excluding validation and saving"),
        ("Goodput", _format_goodput(run.goodput)),
        ("Experts", describe_experts(run.experts) if run.experts else ""),
        ("Interruptions", run.goodput.describe_interruptions() if run.goodput else ""),
        ("Training loss", f"{losses[0]:.4f} at step {int(steps[0])} → {losses[-1]:.4f} at step {int(steps[-1])}"),
        *((f"Validation: {name}", _format_validation(points)) for name, points in run.validation.items()),
        ("Speed", f"{format_count(float(np.nanmedian(columns['tokens_per_s'])))} tokens/s{_format_compute(columns)}"),
        ("Step time", _format_step_time(columns)),
        (
            "Skipped",
            f"{len(run.skipped)} of {len(steps):,} steps, the last: {_format_last_skip(run.skipped)}"
            if run.skipped
            else "",
        ),
    ]
    rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in facts if text)
    return f'<table class="facts">{rows}</table>'


def _format_goodput(goodput: Goodput | None) -> str:
    if goodput is None:
        return ""
    return f"{goodput.describe().removeprefix('goodput ')} of {format_duration(goodput.wall_s)}"


def _format_validation(points: Sequence[Mapping[str, Any]]) -> str:
    first, last = points[0], points[-1]
    bits = last.get("bits_per_byte")
    losses = f"{first['loss']:.4f} → {last['loss']:.4f} ({last['loss'] - first['loss']:+.4f})"
    bits_text = f", {bits:.4f} bits/byte" if isinstance(bits, float) else ""
    return losses + bits_text + (", ALARM" if last.get("alarm") else "")


def _format_compute(columns: Mapping[str, Floats]) -> str:
    tflops, mfu = columns["tflops_per_device"], columns["mfu"]
    tflops_text = f", {np.nanmedian(tflops):.3g} TFLOPS per device" if np.isfinite(tflops).any() else ""
    mfu_text = f", MFU {np.nanmedian(mfu):.1%}" if np.isfinite(mfu).any() else ""
    return f"{tflops_text}{mfu_text} ({'medians' if tflops_text or mfu_text else 'median'})"


def _format_step_time(columns: Mapping[str, Floats]) -> str:
    times, waits = columns["step_time_s"][1:], columns["data_wait_s"][1:]
    if not len(times):
        return ""
    median = f"{np.nanmedian(times):.4g} s (median)"
    if not np.isfinite(waits).any():
        return f"{median}; data wait is not measured in sink mode"
    return f"{median}; {np.nansum(waits) / np.nansum(times):.1%} of the total time is data wait"


def _format_last_skip(skipped: Mapping[int, str]) -> str:
    step = max(skipped)
    return f"step {step} ({skipped[step]})"


def _describe_size(source: Mapping[str, Any]) -> str:
    """Return a source's tokens, with the share of padding if rows are not concatenated documents."""
    share = source.get("padding_share")
    return format_count(source["tokens"]) + ("" if share is None else f", {share:.1%} padding")


def _render_account(run: RunData) -> str:
    """Return the data tables: tokens trained on, tokens planned, and epochs."""
    if run.account is None:
        return ""
    rows = []
    phases = {phase["name"]: phase.get("tokens", {}) for phase in run.info.get("phases", [])}
    for phase, tokens in run.account["tokens"].items():
        total, planned = sum(tokens.values()) or 1, phases.get(phase, {})
        for source, count in tokens.items():
            plan_total = sum(planned.values()) or 1
            plan = planned.get(source)
            plan_text = f"{format_count(plan)} ({plan / plan_total:.1%})" if plan is not None else "–"
            rows.append((phase, source, format_count(count), f"{count / total:.1%}", plan_text))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    sizes = run.info.get("sources", {})
    epochs = "".join(
        f"<tr><td>{html.escape(source)}</td><td>{passes:.2f}</td>"
        f"<td>{_describe_size(sizes[source]) if source in sizes else '–'}</td></tr>"
        for source, passes in run.account["epochs"].items()
    )
    return (
        '<div class="tables"><div class="scroll"><table><thead><tr><th>Phase</th><th>Source</th><th>Tokens</th>'
        f"<th>Share</th><th>Plan (whole phase)</th></tr></thead><tbody>{body}</tbody></table></div>"
        '<div class="scroll"><table><thead><tr><th>Source</th><th>Epochs</th><th>Tokens per epoch</th></tr></thead>'
        f"<tbody>{epochs}</tbody></table></div></div>"
    )
