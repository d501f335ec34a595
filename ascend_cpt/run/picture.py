"""Plots a resolved run's learning rate and data blend against tokens, as a PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ascend_cpt.config.values import format_count
from ascend_cpt.files import write_whole
from ascend_cpt.recipe.schedule import learning_rate_at
from ascend_cpt.run.resolved_run import ResolvedRun

NUM_POINTS = 1000


def draw_plan(run: ResolvedRun, picture_path: Path) -> None:
    """Plot the learning rate over shaded phases and, below it, each source's share of each phase.

    Raises:
        OSError: when the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    figure, (rate_axes, blend_axes) = plt.subplots(
        2, 1, figsize=(9, 6), sharex=True, height_ratios=[3, 2], constrained_layout=True
    )
    if run.schedule is not None:
        steps = np.unique(np.linspace(0, run.budget.total_steps - 1, NUM_POINTS).astype(int))
        rates = [learning_rate_at(run.schedule, int(step)) for step in steps]
        rate_axes.plot([run.budget.count_tokens(int(step)) for step in steps], rates, color="black", lw=1.5)
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_ylim(bottom=0)
    rate_axes.grid(alpha=0.3)
    rate_axes.set_title(f"{run.run_dir.name}: {run.budget.total_steps} steps")
    colors = {source.name: f"C{index % 10}" for index, source in enumerate(run.sources)}
    for index, phase in enumerate(run.phases):
        start, stop = (run.budget.count_tokens(step) for step in (phase.first_step, phase.stop_step))
        rate_axes.axvspan(start, stop, color="0.85" if index % 2 else "0.95", lw=0)
        rate_axes.annotate(
            phase.name, ((start + stop) / 2, 0.97), xycoords=("data", "axes fraction"), ha="center", va="top"
        )
        counts = run.count_source_rows(phase.first_step, phase.stop_step)
        bottom = 0.0
        for name, rows in counts.items():
            share = rows / sum(counts.values())
            if share:
                blend_axes.bar(
                    start, share, stop - start, bottom, align="edge", color=colors[name], edgecolor="white", lw=1
                )
            bottom += share
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
    blend_axes.legend(handles, list(colors), loc="upper left", bbox_to_anchor=(1.0, 1.0))
    blend_axes.set_ylabel("share of the rows")
    blend_axes.set_ylim(0, 1)
    blend_axes.set_xlim(0, run.budget.total_tokens)
    blend_axes.set_xlabel("tokens")
    blend_axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: format_count(int(tokens))))
    with write_whole(picture_path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
