"""Summarizes a run in a few lines, from its metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ascend_cpt.config.values import format_count
from ascend_cpt.errors import DataError
from ascend_cpt.monitor.experts.load import describe_experts
from ascend_cpt.monitor.goodput.account import Goodput, compute_goodput
from ascend_cpt.monitor.goodput.nodes import describe_node_changes
from ascend_cpt.monitor.goodput.restarts import Restart, find_restarts
from ascend_cpt.monitor.goodput.slow_ranks import MAX_LISTED, SlowRank, describe_slow
from ascend_cpt.monitor.goodput.start import StartRecord
from ascend_cpt.monitor.goodput.timeline import FILE_NAME, read_timeline
from ascend_cpt.monitor.history import read_metrics
from ascend_cpt.monitor.record import DataRecord
from ascend_cpt.monitor.sinks import format_account, format_duration, format_start

MAX_INTERRUPTIONS = 10
"""Listed in a summary."""


def summarize_run(run_dir: Path) -> list[str]:
    """Return a summary of a run, line by line, with the paths of its files.

    Raises:
        DataError: when the folder contains no run.
    """
    records = list(read_metrics(run_dir / "metrics.jsonl"))
    steps = [record for record in records if record["kind"] == "step"]
    if not steps:
        raise DataError(f"{run_dir}: not a run folder (metrics.jsonl has no steps); give the folder of a run")
    first, last = steps[0], steps[-1]
    lines = [
        f"{run_dir.name}: {last['step']} of {last['total_steps']} steps, {format_count(last['tokens'])} tokens",
        f"  training loss    {float(first['loss']):.4f} at step {first['step']} → "
        f"{float(last['loss']):.4f} at step {last['step']}",
    ]
    lines.extend(_describe_set(name, points) for name, points in collect_by_name(records, "validation").items())
    lines.extend(_describe_task(name, points) for name, points in collect_by_name(records, "task").items())
    lines.extend(
        f"  experts          {describe_experts(one)}" for one in [r for r in records if r["kind"] == "experts"][-1:]
    )
    if last.get("num_skipped"):
        lines.append(f"  skipped          {last['num_skipped']} of {last['step']} steps, by cpt.guards")
    lines.extend(f"  last start       {line}" for line in _describe_start(records))
    lines.extend(f"  slow             {line}" for line in describe_slow_ranks(records))
    if changes := describe_node_changes([record for record in records if record["kind"] == "nodes"]):
        lines.append(f"  changed nodes    {changes}")
    intervals = read_timeline(run_dir / FILE_NAME)
    if goodput := compute_goodput(intervals):
        lines.extend(f"  {line}" for line in _describe_goodput(goodput))
    lines.extend(f"                   {line}" for line in _describe_interruptions(find_restarts(intervals)))
    lines.extend(f"  data             {line}" for line in _describe_data(records))
    lines.append(f"  checkpoints      {run_dir / 'checkpoint'}")
    if (run_dir / "loss.png").is_file():
        lines.append(f"  loss plot        {run_dir / 'loss.png'}")
    if (run_dir / "report.html").is_file():
        lines.append(f"  report           {run_dir / 'report.html'}")
    return lines


def collect_by_name(records: list[dict[str, Any]], kind: str) -> dict[str, list[dict[str, Any]]]:
    """Return the records of each validation set (`kind` validation) or task (`task`), in step order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["kind"] == kind:
            found.setdefault(record["name"], []).append(record)
    return found


def describe_slow_ranks(records: list[dict[str, Any]]) -> list[str]:
    """Return a line for each rank that was slow in the last window or in several windows, most frequent first."""
    windows = [record["slow"] for record in records if record["kind"] == "ranks"]
    found: dict[tuple[int, str], list[SlowRank]] = {}
    for window in windows:
        for one in window:
            found.setdefault((one["rank"], one["cause"]), []).append(one)
    is_last = {(one["rank"], one["cause"]) for one in (windows[-1] if windows else ())}
    lines = [
        f"{describe_slow(max(times, key=lambda one: one['excess']))} in {len(times)} of {len(windows)} windows"
        for key, times in sorted(found.items(), key=lambda item: -len(item[1]))
        if len(times) > 1 or key in is_last
    ]
    return lines[:MAX_LISTED]


def _describe_goodput(goodput: Goodput) -> list[str]:
    launches = f" in {goodput.num_launches} launches" if goodput.num_launches > 1 else ""
    lines = [f"time             {format_duration(goodput.wall_s)}{launches}: {goodput.describe()}"]
    if interruptions := goodput.describe_interruptions():
        lines.append(f"interruptions    {interruptions}")
    return lines


def _describe_interruptions(restarts: list[Restart]) -> list[str]:
    lines = [restart.describe() for restart in restarts if restart.is_interruption]
    return [f"(the last {MAX_INTERRUPTIONS})", *lines[-MAX_INTERRUPTIONS:]] if len(lines) > MAX_INTERRUPTIONS else lines


def _describe_start(records: list[dict[str, Any]]) -> list[str]:
    starts = [record for record in records if record["kind"] == "start"]
    if not starts:
        return []
    return [format_start(StartRecord(**{key: value for key, value in starts[-1].items() if key != "kind"}))]


def _describe_data(records: list[dict[str, Any]]) -> list[str]:
    accounts = [record for record in records if record["kind"] == "data"]
    if not accounts:
        return []
    last = accounts[-1]
    return format_account(DataRecord(step=last["step"], tokens=last["tokens"], epochs=last["epochs"]))


def _describe_set(name: str, points: list[dict[str, Any]]) -> str:
    first, last = points[0], points[-1]
    alarm = ", ALARM" if last.get("alarm") else ""
    change = float(last["loss"]) - float(first["loss"])
    losses = f"{float(first['loss']):.4f} before → {float(last['loss']):.4f} after"
    return f"  held-out {name:<9}{losses} ({change:+.4f}{alarm})"


def _describe_task(name: str, points: list[dict[str, Any]]) -> str:
    first, last = points[0], points[-1]
    alarm = ", ALARM" if last.get("alarm") else ""
    change = float(last["score"]) - float(first["score"])
    scores = f"{float(first['score']):.4f} before → {float(last['score']):.4f} after"
    return f"  task {name:<13}{last['metric']} {scores} ({change:+.4f}{alarm})"
