"""Plots a sweep: each measure against the variable, and the gain against the forgetting."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ascend_cpt.files import write_whole
from ascend_cpt.run.merging.results import Point


def draw_sweep(
    variable: str, points: Sequence[Point], general: Collection[str], picture_path: Path, *, title: str
) -> bool:
    """Plot the points. Return whether there are measures of both kinds, so that gain and forgetting are plotted.

    Args:
        variable: Name of the variable.
        points: At least one point, in ascending order. Gain and forgetting are relative to the first one.
        general: Sets and tasks that measure forgetting; the others measure the gain.
        picture_path: The PNG file.
        title: Title of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measures = points[0].measures
    others = [measure.name for measure in measures if measure.name not in general]
    has_both = bool(others) and any(measure.name in general for measure in measures)
    kinds = [kind for kind in (False, True) if any(measure.is_task is kind for measure in measures)]
    num_panels = len(kinds) + has_both
    figure, axes = plt.subplots(1, num_panels, figsize=(5.5 * num_panels, 4.5), squeeze=False, constrained_layout=True)
    figure.suptitle(title)
    for panel, is_task in zip(axes[0], kinds, strict=False):
        _draw_measures(panel, variable, points, is_task=is_task)
    if has_both:
        _draw_trade_off(axes[0][-1], variable, points, general, others)
    with write_whole(picture_path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return has_both


def _draw_measures(axes: Any, variable: str, points: Sequence[Point], *, is_task: bool) -> None:
    for index, measure in enumerate(points[0].measures):
        if measure.is_task is is_task:
            values = [point.measures[index].value for point in points]
            axes.plot([point.value for point in points], values, "o-", label=measure.label)
    axes.set_xlabel(variable)
    axes.set_ylabel("score" if is_task else "loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_trade_off(
    axes: Any, variable: str, points: Sequence[Point], general: Collection[str], others: Collection[str]
) -> None:
    forgetting = [-point.gain(points[0], general) for point in points]
    gains = [point.gain(points[0], others) for point in points]
    axes.plot(forgetting, gains, "o-", color="tab:purple")
    for point, x, y in zip(points, forgetting, gains, strict=True):
        axes.annotate(f"{point.value:g}", (x, y), xytext=(5, -10), textcoords="offset points", fontsize=8)
    axes.set_xlabel(f"forgetting: {', '.join(general)}")
    axes.set_ylabel(f"gain: {', '.join(others)}")
    axes.set_title(f"relative to {variable} = {points[0].value:g}", fontsize=10)
    axes.grid(alpha=0.3)
