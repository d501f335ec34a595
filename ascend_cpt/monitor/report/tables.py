"""The report's tables: a run's summary, its data account, and the comparison of several runs."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ascend_cpt.config.values import format_count
from ascend_cpt.monitor.experts.load import describe_experts
from ascend_cpt.monitor.goodput.account import Goodput
from ascend_cpt.monitor.goodput.nodes import describe_node_changes
from ascend_cpt.monitor.report.curves import Floats, smooth
from ascend_cpt.monitor.report.run_data import RunData
from ascend_cpt.monitor.sinks import format_duration

MAX_RESTARTS = 200
"""In the table of restarts, the last ones; the loss chart marks all of them."""
SIZES = {
    "data_parallel": "data",
    "model_parallel": "tensor",
    "pipeline_stage": "pipeline",
    "context_parallel": "context",
}


def render_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """Return a table of texts, which can be scrolled sideways on a narrow screen."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    shape = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{shape}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def render_comparison(names: Sequence[str], runs: Sequence[RunData]) -> str:
    """Return a table with a row for each of several runs."""
    sets = list(dict.fromkeys(name for run in runs for name in run.validation))
    tasks = list(dict.fromkeys(name for run in runs for name in run.tasks))
    heads = ["Run", "Steps", "Tokens", "Training loss (mean)"]
    heads += [f"Validation: {name}" for name in sets] + [f"Task: {name}" for name in tasks]
    heads += ["Tokens/s", "TFLOPS per device", "MFU", "Goodput", "Skipped", "Restarts"]
    rows = []
    for name, run in zip(names, runs, strict=True):
        columns = run.columns
        rows.append(
            [
                name,
                f"{int(columns['step'][-1]):,} of {int(columns['total_steps'][-1]):,}",
                format_count(int(columns["tokens"][-1])),
                _format_number(float(smooth(columns["loss"], np.array([len(columns["loss"]) - 1]))[0][0]), ".4f"),
                *(_format_last(run.validation.get(each, ()), "loss") for each in sets),
                *(_format_last(run.tasks.get(each, ()), "score") for each in tasks),
                format_count(_median(columns["tokens_per_s"])),
                _format_number(_median(columns["tflops_per_device"]), ".3g"),
                _format_number(_median(columns["mfu"]), ".1%"),
                _format_number(run.goodput.share if run.goodput else math.nan, ".1%"),
                str(len(run.skipped)),
                str(len(run.restarts)),
            ]
        )
    # A column without any value would only widen the table.
    kept = [i for i in range(len(heads)) if any(row[i] not in ("–", "0") for row in rows)]
    table = render_table([heads[i] for i in kept], ([row[i] for i in kept] for row in rows), kind="comparison")
    return f"<section><h2>Comparison</h2>{table}</section>"


def _median(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def _format_number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def _format_last(points: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return the last loss or score and its change since the first."""
    if not points:
        return "–"
    first, last = points[0][key], points[-1][key]
    return f"{last:.4f} ({last - first:+.4f})" + (", ALARM" if points[-1].get("alarm") else "")


def render_summary(run: RunData) -> str:
    """Return a table of facts about a run."""
    columns, info = run.columns, run.info
    steps, losses = columns["step"], columns["loss"]
    times = columns["step_time_s"]
    facts = [
        (
            "Model",
            f"{info['model']}, {format_count(info.get('num_parameters', 0))} parameters" if "model" in info else "",
        ),
        ("Devices", f"{info['num_devices']} × {info.get('device_name', '?')}" if "num_devices" in info else ""),
        ("Layouts", _format_layouts(info.get("layouts") or [])),
        ("Steps", f"{int(steps[-1]):,} of {int(columns['total_steps'][-1]):,}"),
        ("Tokens", f"{format_count(int(columns['tokens'][-1]))} ({format_count(tokens_per_step(run))} per step)"),
        ("Training time", f"{format_duration(float(np.nansum(times)))}, excluding validation and saving"),
        ("Goodput", _format_goodput(run.goodput)),
        ("Interruptions", run.goodput.describe_interruptions() if run.goodput else ""),
        ("Restarts", str(len(run.restarts)) if run.restarts else ""),
        ("Experts", describe_experts(run.experts) if run.experts else ""),
        ("Changed nodes", describe_node_changes(run.nodes)),
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
    return f'<div class="scroll"><table class="facts">{rows}</table></div>'


def tokens_per_step(run: RunData) -> float:
    """Return the mean number of tokens per step."""
    return float(run.columns["tokens"][-1] / run.columns["step"][-1])


def render_restarts(run: RunData) -> str:
    """Return a table of the run's restarts with their causes, or "" if there are none."""
    if not run.restarts:
        return ""
    rows = [
        (f"{restart.last_step:,}", f"{restart.from_step:,}", restart.describe_cause())
        for restart in run.restarts[-MAX_RESTARTS:]
    ]
    return render_table(("Last step", "Resumed at step", "Why the previous launch ended"), rows, kind="restarts")


def render_slow_ranks(run: RunData) -> str:
    """Return a table of the run's slow ranks with their nodes, or "" if there are none."""
    return render_table(("Slow ranks",), ((line,) for line in run.slow_ranks)) if run.slow_ranks else ""


def _format_layouts(layouts: Sequence[Mapping[str, int]]) -> str:
    """Return the layouts of a run that changed its layout, or "" for any other run."""
    if len(layouts) < 2:
        return ""
    return ", ".join(
        f"from step {layout.get('step', 0) + 1:,}: "
        + (" × ".join(f"{name} {layout[key]}" for key, name in SIZES.items() if layout.get(key, 1) > 1) or "1 device")
        + (f", experts over {layout['expert_parallel']}" if layout.get("expert_parallel", 1) > 1 else "")
        for layout in layouts
    )


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


def render_account(run: RunData) -> str:
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
    sizes = run.info.get("sources", {})
    epochs = [
        (source, f"{passes:.2f}", _describe_size(sizes[source]) if source in sizes else "–")
        for source, passes in run.account["epochs"].items()
    ]
    tokens_table = render_table(("Phase", "Source", "Tokens", "Share", "Plan (whole phase)"), rows)
    epochs_table = render_table(("Source", "Epochs", "Tokens per epoch"), epochs)
    return f'<div class="tables">{tokens_table}{epochs_table}</div>'
