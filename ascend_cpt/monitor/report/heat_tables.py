"""Renders needle-task heat maps for the report as tables with colored cells."""

from __future__ import annotations

import html
import math

from ascend_cpt.monitor.heat_map import HeatMap, choose_heat_maps
from ascend_cpt.monitor.report.run_data import RunData


def render_heat_maps(run: RunData) -> str:
    """Return each needle task's first and last maps, or an empty string if there are no needle tasks."""
    parts = []
    for name, records in run.tasks.items():
        for maps in choose_heat_maps(records):
            parts += [_render(name, found) for found in maps]
    return f'<div class="tables">{"".join(parts)}</div>' if parts else ""


def _render(name: str, found: HeatMap) -> str:
    """Return a table with a row for each depth and a column for each length."""
    head = "".join(f"<th>{length:,}</th>" for length in found.lengths)
    body = "".join(
        f"<tr><th>{depth:.0%}</th>{''.join(_render_cell(found, length, depth) for length in found.lengths)}</tr>"
        for depth in found.depths
    )
    caption = f"{html.escape(name)}: {html.escape(found.metric)} at step {found.step}, by depth and tokens"
    return (
        f'<div class="scroll"><table class="heat"><caption>{caption}</caption><thead><tr><th>Depth</th>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _render_cell(found: HeatMap, length: int, depth: float) -> str:
    score = found.scores.get((length, depth), math.nan)
    if math.isnan(score):
        return "<td>–</td>"
    # From red (0) to green (120).
    return f'<td style="background:hsl({round(120 * score)} 60% 45%)">{score:.2f}</td>'
