"""Writes a self-contained HTML report about one or several runs."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path

from ascend_cpt.files import write_text
from ascend_cpt.monitor.record import Record
from ascend_cpt.monitor.report.charts import list_charts, list_heat_maps
from ascend_cpt.monitor.report.curves import encode_axes
from ascend_cpt.monitor.report.page import Content, PlotlyMissing, render_page
from ascend_cpt.monitor.report.quality import render_tasks
from ascend_cpt.monitor.report.run_data import RunData, load_runs
from ascend_cpt.monitor.report.tables import (
    render_account,
    render_comparison,
    render_restarts,
    render_slow_ranks,
    render_summary,
)

REPORT_NAME = "report.html"
MAX_OPEN = 3
"""The tables of more runs are folded."""


def write_report(run_dirs: Sequence[Path], output: Path) -> None:
    """Write the report of these runs atomically.

    Raises:
        DataError: when a folder contains no run, or damaged records.
        PlotlyMissing: plotly is not installed.
    """
    page = render_report(load_runs(run_dirs))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page)


class ReportSink:
    """Writes the report to the run folder when the run ends or stops. It must be closed after the other sinks.

    Args:
        run_dir: The run folder.
        warn: Prints a warning. A run whose environment lacks plotly ends normally.
    """

    def __init__(self, run_dir: Path, warn: Callable[[str], None]) -> None:
        self._run_dir, self._warn = run_dir, warn

    def write(self, record: Record) -> None:
        """Do nothing, because the report is made from metrics.jsonl."""

    def close(self) -> None:
        """Write the report."""
        try:
            write_report([self._run_dir], self._run_dir / REPORT_NAME)
        except PlotlyMissing as error:
            self._warn(f"{REPORT_NAME} is not written: {error}")


def render_report(runs: Sequence[RunData]) -> str:
    """Return the report of some runs as HTML."""
    return render_page(build_content(runs))


def build_content(runs: Sequence[RunData]) -> Content:
    """Return the tables and charts of some runs."""
    names = _make_names_unique([run.name for run in runs])
    is_open = " open" if len(runs) <= MAX_OPEN else ""
    sections = "".join(
        f'<details class="run"{is_open}><summary><h2>{html.escape(name)}</h2></summary>{render_summary(run)}'
        f"{render_restarts(run)}{render_slow_ranks(run)}{render_tasks(run)}"
        f'<div class="charts" data-maps="{index}"></div>{render_account(run)}</details>'
        for index, (name, run) in enumerate(zip(names, runs, strict=True))
    )
    data = {
        "runs": [
            {
                "name": name,
                **encode_axes(run.columns["step"], run.columns["tokens"], run.columns["step_time_s"]),
                "restarts": [restart.from_step for restart in run.restarts],
            }
            for name, run in zip(names, runs, strict=True)
        ],
        "charts": list_charts(runs),
        "maps": [chart for index, run in enumerate(runs) for chart in list_heat_maps(index, run)],
    }
    return Content(
        title=names[0] if len(names) == 1 else f"{len(names)} runs",
        comparison=render_comparison(names, runs) if len(runs) > 1 else "",
        sections=sections,
        data=data,
    )


def _make_names_unique(names: Sequence[str]) -> list[str]:
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]
