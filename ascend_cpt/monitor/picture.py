"""Plots a run's losses and the heat maps of its needle tasks as PNG files."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from ascend_cpt.files import write_whole
from ascend_cpt.monitor.heat_map import HeatMap, choose_heat_maps
from ascend_cpt.monitor.history import read_metrics
from ascend_cpt.monitor.rises import Rise, find_rises
from ascend_cpt.monitor.summary import collect_by_name


def draw_losses(metrics_path: Path, picture_path: Path, *, title: str) -> None:
    """Plot the training loss, the validation losses with rises above their limits, and the learning rate."""
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
    for name, points in collect_by_name(records, "validation").items():
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


def draw_needles(metrics_path: Path, folder: Path) -> list[Path]:
    """Plot each needle task's heat maps to `needle_<task>.png` in a folder. Return the files."""
    files = []
    for name, records in collect_by_name(list(read_metrics(metrics_path)), "task").items():
        maps = choose_heat_maps(records)
        if maps:
            safe_name = re.sub(r"[^\w.-]", "_", name)
            path = folder / f"needle_{safe_name}.png"
            _draw_heat_maps(maps, path, title=name)
            files.append(path)
    return files


def _draw_heat_maps(maps: list[list[HeatMap]], path: Path, *, title: str) -> None:
    """Draw a row for each metric, showing the first and the last evaluation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    num_columns = max(map(len, maps))
    figure, axes = plt.subplots(
        len(maps), num_columns, figsize=(5 * num_columns, 4 * len(maps)), squeeze=False, constrained_layout=True
    )
    figure.suptitle(title)
    image = None
    for row, columns in enumerate(maps):
        for column, found in enumerate(columns):
            place = axes[row][column]
            scores = [
                [found.scores.get((length, depth), math.nan) for length in found.lengths] for depth in found.depths
            ]
            image = place.imshow(scores, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
            place.set_xticks(range(len(found.lengths)), [f"{length:,}" for length in found.lengths])
            place.set_yticks(range(len(found.depths)), [f"{depth:.0%}" for depth in found.depths])
            place.set_title(f"{found.metric} at step {found.step}")
            place.set_xlabel("tokens")
            place.set_ylabel("depth")
    figure.colorbar(image, ax=axes)
    with write_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
