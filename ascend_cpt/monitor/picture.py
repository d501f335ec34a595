"""Plots the losses of a run as a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ascend_cpt.files import write_whole
from ascend_cpt.monitor.history import read_metrics
from ascend_cpt.monitor.rises import Rise, find_rises


def draw_losses(metrics_path: Path, picture_path: Path, *, title: str) -> None:
    """Plot training loss, validation losses with their rises above the limit, and the learning rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = list(read_metrics(metrics_path))
    steps = [record for record in records if record["kind"] == "step"]
    figure, (loss_axes, rate_axes) = plt.subplots(
        2, 1, figsize=(9, 6), sharex=True, height_ratios=[3, 1], constrained_layout=True
    )
    loss_axes.plot(
        [r["step"] for r in steps], [float(r["loss"]) for r in steps], lw=1, label="training", color="tab:gray"
    )
    rises: list[Rise] = []
    for name in dict.fromkeys(r["name"] for r in records if r["kind"] == "validation"):
        points = [r for r in records if r["kind"] == "validation" and r["name"] == name]
        loss_axes.plot(
            [r["step"] for r in points], [float(r["loss"]) for r in points], "o-", label=f"validation: {name}"
        )
        rises.extend(find_rises(points, "loss"))
    _mark_rises(loss_axes, rises)
    loss_axes.set_ylabel("loss (nats per token)")
    loss_axes.set_title(title)
    loss_axes.grid(alpha=0.3)
    loss_axes.legend()
    rate_axes.plot([r["step"] for r in steps], [r["learning_rate"] for r in steps], color="tab:green")
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_xlabel("step")
    rate_axes.grid(alpha=0.3)
    with write_whole(picture_path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _mark_rises(axes: Any, rises: list[Rise]) -> None:
    """Mark the first validation above a limit, and the first one below it again."""
    starts = [(rise.first_step, rise.first_value) for rise in rises]
    ends = [(rise.recovered_step, rise.recovered_value) for rise in rises if rise.recovered_step is not None]
    for points, marker, color, label in (
        (starts, "^", "tab:red", "above its limit"),
        (ends, "v", "tab:green", "below its limit again"),
    ):
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, marker, ms=10, mfc="none", mew=2, color=color, label=label, zorder=5)
