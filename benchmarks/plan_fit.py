"""Fits the time estimate of tools/plan.py to published speeds, and prints the errors.

python benchmarks/plan_fit.py              the parameters of ascend_cpt/plan/machines.py, errors, leave-one-family-out
python benchmarks/plan_fit.py --table      the table of docs/planning.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.plan.machines import EFFICIENCIES, find_machine
from ascend_cpt.plan.memory import estimate_memory
from ascend_cpt.plan.speed.efficiency import Efficiency
from ascend_cpt.plan.speed.figures import MINDFORMERS, Figure, load_figures
from ascend_cpt.plan.speed.fit import Prior, Speed, fit, predict

FIGURES = Path(__file__).resolve().with_name("plan_figures.yaml")
BY_FRAMEWORK = ("activation_passes", "layer_s", "step_s")
PRIORS = {
    "matmul": Prior(value=0.75, sigma=0.5),
    "attention": Prior(value=0.4, sigma=0.7),
    "exchange": Prior(value=0.6, sigma=0.7),
    "activation_passes": Prior(value=5.0, sigma=0.5),
    "layer_s": Prior(value=0.5e-3, sigma=0.8),
    "step_s": Prior(value=0.03, sigma=1.0),
    "data_hidden": Prior(value=0.5, sigma=0.7),
    "tensor_hidden": Prior(value=0.5, sigma=0.7),
}


def to_speed(figure: Figure) -> Speed:
    """Return the figure as an observation for its framework."""
    return Speed(
        case=figure.case,
        machine=find_machine(figure.device),
        tokens_per_device_s=figure.tokens_per_device_s,
        group=figure.framework,
    )


def fit_figures(figures: list[Figure]) -> dict[str, Efficiency]:
    """Return the efficiencies for every framework."""
    return fit([to_speed(figure) for figure in figures], PRIORS, BY_FRAMEWORK)


def find_error(figure: Figure, found: dict[str, Efficiency]) -> float:
    """Return the relative error of a figure's estimate."""
    return predict(to_speed(figure), found[figure.framework]) / figure.tokens_per_device_s - 1


def describe(errors: list[float]) -> str:
    """Return the median and the 90th percentile of the absolute errors."""
    sizes = sorted(map(abs, errors))
    return f"median {statistics.median(sizes):.1%}, 9 of 10 within {sizes[int(0.9 * (len(sizes) - 1) + 0.5)]:.1%}"


def print_fit(figures: list[Figure]) -> None:
    """Fit, and print the parameters, errors by family, and errors for families left out one at a time."""
    found = fit_figures([figure for figure in figures if figure.calibrates])
    for framework, efficiency in found.items():
        print(framework, efficiency)
    families = sorted({figure.family for figure in figures})
    for framework in found:
        for calibrates in (True, False):
            chosen = [f for f in figures if f.framework == framework and f.calibrates == calibrates]
            kind = "fitted" if calibrates else "held out"
            print(f"{framework}, {len(chosen)} {kind}: {describe([find_error(f, found) for f in chosen])}")
    for figure in figures:
        kind = "fit" if figure.calibrates else ""
        print(f"{figure.framework:14} {figure.name:40} {kind:4} {find_error(figure, found):+.0%}")
    left_out = []
    for family in families:
        others = fit_figures([figure for figure in figures if figure.family != family])
        errors = [find_error(figure, others) for figure in figures if figure.family == family]
        left_out += errors
        print(f"without {family}: {' '.join(f'{error:+.0%}' for error in errors)}")
    print(f"leave one family out: {describe(left_out)}")


def print_table(figures: list[Figure]) -> None:
    """Print the rows of the table in docs/planning.md."""
    for figure in figures:
        layout = figure.case.layout
        error = find_error(figure, EFFICIENCIES)
        peak = max(stage.peak_bytes for stage in estimate_memory(figure.case)) / GIGABYTE
        memory = f"{peak:.0f}" if figure.framework == MINDFORMERS else ""
        print(
            f"| {'fit' if figure.calibrates else ''} | {figure.framework} {figure.name} | {figure.device} | "
            f"{figure.case.seq_length} | {layout.data_parallel} × {layout.tensor_parallel} × "
            f"{layout.pipeline_parallel} | {figure.tokens_per_device_s:,.0f} | "
            f"{figure.tokens_per_device_s * (1 + error):,.0f} | {error:+.0%} | {memory} |".replace("|  |", "| |")
        )


def main() -> None:
    """Print the fit or the table."""
    parser = argparse.ArgumentParser(description="Fit the time estimate of tools/plan.py to published speeds.")
    parser.add_argument("--table", action="store_true", help="print the table of docs/planning.md")
    args = parser.parse_args()
    figures = load_figures(FIGURES)
    if args.table:
        print_table(figures)
    else:
        print_fit(figures)


if __name__ == "__main__":
    main()
