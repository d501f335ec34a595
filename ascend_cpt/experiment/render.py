"""Renders an experiment's results as a Markdown table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ascend_cpt.experiment.results import Results, summarize
from ascend_cpt.experiment.settings import Measure
from ascend_cpt.files import write_whole


def render_table(results: Results) -> str:
    """Return mean ± standard deviation over the seeds, one row per variant. Rows with missing seeds say so."""
    names = [measure.name for measure in results.measures]
    lines = [f"| variant | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for variant in results.variants:
        cells, count = [], 0
        for measure in results.measures:
            values = results.collect(variant, measure)
            count = len(values)
            cells.append(_format(measure, values))
        note = "" if count == len(results.seeds) else f" ({count} of {len(results.seeds)} seeds)"
        lines.append(f"| {variant}{note} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _format(measure: Measure, values: list[float]) -> str:
    if not values:
        return "failed"
    mean, deviation = summarize(values)
    text = f"{mean:.3f}" if measure.value == "final" else f"{mean:+.3f}"
    return f"{text} ± {deviation:.3f}" if len(values) > 1 else text


def draw_picture(results: Results, path: Path) -> None:
    """Plot all seeds and their mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    draw = {"frontier": _draw_frontier, "bars": _draw_bars, "curves": _draw_curves}[results.picture.kind]
    draw(results, axes)
    axes.set_title(results.title + (" (--quick)" if results.quick else ""))
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)


def _find_measures(results: Results) -> list[Measure]:
    by_name = {measure.name: measure for measure in results.measures}
    return [by_name[name] for name in results.picture.measures]


def _draw_frontier(results: Results, axes: Any) -> None:
    x_measure, y_measure = _find_measures(results)
    for index, variant in enumerate(results.variants):
        xs, ys = results.collect(variant, x_measure), results.collect(variant, y_measure)
        if not xs:
            continue
        (x, x_deviation), (y, y_deviation) = summarize(xs), summarize(ys)
        axes.scatter(xs, ys, color=f"C{index}", alpha=0.4)
        axes.errorbar(x, y, xerr=x_deviation, yerr=y_deviation, fmt="o", color=f"C{index}", label=variant)
    axes.set_xlabel(f"{x_measure.name} (nats per token)")
    axes.set_ylabel(f"{y_measure.name} (nats per token)")
    axes.legend()


def _draw_bars(results: Results, axes: Any) -> None:
    measures = _find_measures(results)
    width = 0.8 / len(measures)
    for index, measure in enumerate(measures):
        for place, variant in enumerate(results.variants):
            values = results.collect(variant, measure)
            if not values:
                continue
            x = place + (index - (len(measures) - 1) / 2) * width
            label = measure.name if place == 0 else None
            axes.bar(x, summarize(values)[0], width, color=f"C{index}", alpha=0.5, label=label)
            axes.scatter([x] * len(values), values, color="black", s=12, zorder=3)
    axes.set_xticks(range(len(results.variants)), results.variants, rotation=15)
    axes.set_ylabel("nats per token")
    axes.axhline(0, color="black", lw=0.8)
    axes.legend()


def _draw_curves(results: Results, axes: Any) -> None:
    name = results.picture.set
    assert name is not None
    for index, variant in enumerate(results.variants):
        curves = [run.curves[name] for run in results.runs if run.variant == variant]
        for points in curves:
            axes.plot([tokens for tokens, _ in points], [loss for _, loss in points], color=f"C{index}", alpha=0.25)
        if curves:
            tokens = [at for at, _ in curves[0]]
            means = [summarize([points[i][1] for points in curves])[0] for i in range(len(tokens))]
            axes.plot(tokens, means, color=f"C{index}", label=variant)
    axes.set_xlabel("tokens")
    axes.set_ylabel(f"{name} loss (nats per token)")
    axes.legend()
