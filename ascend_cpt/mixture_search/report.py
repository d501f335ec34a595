"""The outcome of a search: tables, picture and `mixture.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ascend_cpt.files import write_whole
from ascend_cpt.mixture_search.proxies import to_blend
from ascend_cpt.mixture_search.results import Result
from ascend_cpt.recipe.mixture.frontier import Goals, Predicted
from ascend_cpt.recipe.mixture.surface import Fitted

TABLE_NAME, PICTURE_NAME, OUTCOME_NAME = "mixture.md", "mixture.png", "mixture.json"


def write_blend(names: Sequence[str], shares: Sequence[float]) -> str:
    """Return the line for a configuration."""
    return f"blend: {{{', '.join(f'{name}: {share:g}' for name, share in to_blend(names, shares).items())}}}"


def make_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is the header."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def describe_fits(fitted: Mapping[str, Fitted]) -> str:
    """Return a table of the chosen laws with their errors on left-out blends."""
    rows = [["measure", "law", "error", "error of the mean", "noise", "verdict"]]
    for name, one in fitted.items():
        law = one.law.name if one.law is not None else "none"
        noise = "-" if one.noise is None else f"{one.noise:.4f}"
        verdict = "failed: not better than the mean" if one.has_failed else "usable"
        rows.append([name, law, f"{one.error:.4f}", f"{one.mean_error:.4f}", noise, verdict])
    return make_table(rows)


def describe_frontier(names: Sequence[str], points: Sequence[Predicted]) -> str:
    """Return a table of blends with predicted forgetting and gain."""
    rows = [["forgetting", "gain", *names]]
    for one in points:
        rows.append(
            [
                write_range(one.forgetting, one.forgetting_band),
                write_range(one.gain, one.gain_band),
                *(f"{share:g}" for share in one.shares),
            ]
        )
    return make_table(rows)


def write_range(value: float | None, band: tuple[float, float] | None) -> str:
    """Return a value with its band."""
    if value is None or band is None:
        return "-"
    return f"{value:+.4f} [{band[0]:+.4f}, {band[1]:+.4f}]"


def to_values(names: Sequence[str], one: Predicted) -> dict[str, Any]:
    """Return a prediction as plain values."""
    return {
        "blend": to_blend(names, one.shares),
        "forgetting": one.forgetting,
        "forgetting_band": one.forgetting_band,
        "gain": one.gain,
        "gain_band": one.gain_band,
    }


def measure_sides(goals: Goals, values: Mapping[str, float]) -> tuple[float | None, float | None]:
    """Return measured forgetting and gain; None without measures for it."""
    sides = [
        sum(weight * values[name] for name, weight in weights.items()) - goals.sum_base(weights) if weights else None
        for weights in (goals.forgetting, goals.gain)
    ]
    return sides[0], sides[1]


def is_inside(value: float | None, band: tuple[float, float] | None) -> bool:
    """Return whether a measured value is within a band, or there is none."""
    return value is None or band is None or band[0] <= value <= band[1]


def describe_annealing(
    names: Sequence[str], results: Mapping[str, Sequence[Result]], measures: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Return a table of the change that each upweighted source causes, and the same as plain values.

    Args:
        names: The upweighted sources.
        results: Results of each source and of the reference (the empty name), in the same order of seeds.
        measures: Names of the measures.
    """
    rows, values = [["upweighted", *measures]], {}
    for name in names:
        cells, record = [], {}
        for measure in measures:
            changes = [
                own.values[measure] - other.values[measure]
                for own, other in zip(results[name], results[""], strict=True)
                if not (own.error or other.error)
            ]
            if not changes:
                cells.append("failed")
                continue
            deviation = float(np.std(changes, ddof=1)) if len(changes) > 1 else None
            mean = float(np.mean(changes))
            cells.append(f"{mean:+.4f}" + ("" if deviation is None else f" ± {deviation:.4f}"))
            record[measure] = {"change": mean, "deviation": deviation, "seeds": len(changes)}
        rows.append([name, *cells])
        values[name] = record
    return make_table(rows), values


def draw(
    path: Path,
    goals: Goals,
    results: Sequence[Result],
    frontier: Sequence[Predicted],
    recommended: Predicted | None,
    confirmed: Sequence[Result],
) -> None:
    """Plot gain against forgetting: measured proxies, the frontier with its bands, and the recommendation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5.5), constrained_layout=True)
    for group, label, marker in ((results, "proxies", "o"), (confirmed, "confirmed", "*")):
        sides = [measure_sides(goals, one.values) for one in group if not one.error]
        if sides:
            axes.plot([x for x, _ in sides], [y for _, y in sides], marker, alpha=0.6, label=label)
    xs = np.array([one.forgetting for one in frontier], dtype=float)
    ys = np.array([one.gain for one in frontier], dtype=float)
    axes.plot(xs, ys, "-", color="tab:red", label="frontier")
    x_bands = np.array([one.forgetting_band for one in frontier], dtype=float)
    y_bands = np.array([one.gain_band for one in frontier], dtype=float)
    errors = [np.abs(bands.T - values).clip(min=0) for bands, values in ((x_bands, xs), (y_bands, ys))]
    axes.errorbar(xs, ys, xerr=errors[0], yerr=errors[1], fmt="none", ecolor="tab:red", alpha=0.4)
    if recommended is not None:
        axes.plot([recommended.forgetting], [recommended.gain], "kD", label="recommended")
    axes.set_xlabel(f"forgetting: {', '.join(goals.general)}")
    axes.set_ylabel(f"gain: {', '.join(goals.others)}")
    axes.grid(alpha=0.3)
    axes.legend()
    with write_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
