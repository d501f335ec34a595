"""The results of an experiment: one file with the settings and every run's validation losses."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt import __version__
from ascend_cpt.errors import ConfigError
from ascend_cpt.experiment.jobs import Curves, Job, read_curves
from ascend_cpt.experiment.settings import Experiment, Measure, Picture
from ascend_cpt.files import write_text

PACKAGES = ("mindspore", "mindformers", "numpy")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One complete continuation."""

    variant: str
    seed: int
    curves: Curves


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a results file contains."""

    title: str
    claim: str
    source: str
    quick: bool
    """Whether the budgets were those of --quick, which show only that the experiment runs."""
    seeds: tuple[int, ...]
    variants: tuple[str, ...]
    measures: tuple[Measure, ...]
    picture: Picture
    settings: Mapping[str, Any]
    """Configuration and overrides of base and continuations."""
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    runs: tuple[RunResult, ...]
    failed: tuple[str, ...]
    """Runs without a result, with the reason."""

    def collect(self, variant: str, measure: Measure) -> list[float]:
        """Return a measure of all runs of a variant, by seed."""
        return [compute(measure, run.curves) for run in self.runs if run.variant == variant]


def compute(measure: Measure, curves: Curves) -> float:
    """Return the value of a measure, in nats per token.

    Raises:
        ConfigError: the run has no such validation set.
    """
    if measure.set not in curves:
        raise ConfigError(f"measure {measure.name!r}: no validation set {measure.set!r}; use {', '.join(curves)}")
    points = curves[measure.set]
    first, last = points[0][1], points[-1][1]
    if measure.value == "final":
        return last
    if measure.value == "peak":
        return max(loss for _, loss in points) - first
    if measure.value == "early":
        return next(loss for tokens, loss in points if tokens >= measure.at * points[-1][0]) - first
    return last - first


def summarize(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (of the sample; 0 for a single value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def collect_results(
    experiment: Experiment, jobs: Sequence[Job], folder: Path, failed: Mapping[str, str], *, quick: bool
) -> Results:
    """Return the results of the complete runs in `folder`."""
    seeds = tuple(dict.fromkeys(job.seed for job in jobs))
    runs = []
    for job in jobs:
        curves = read_curves(folder / job.name) if job.needs is not None else None
        if curves is not None:
            runs.append(RunResult(variant=job.variant, seed=job.seed, curves=curves))
    return Results(
        title=experiment.title,
        claim=experiment.claim,
        source=experiment.source,
        quick=quick,
        seeds=seeds,
        variants=tuple(variant.name for variant in experiment.variants),
        measures=experiment.measures,
        picture=experiment.picture,
        settings={
            job.variant: {"config": job.config, "tokens": job.tokens, "set": dict(job.overrides)}
            for job in jobs
            if job.seed == seeds[0]
        },
        machine={"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        versions={"ascend_cpt": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}},
        runs=tuple(runs),
        failed=tuple(f"{job.variant}, seed {job.seed}: {failed[job.name]}" for job in jobs if job.name in failed),
    )


def save_results(results: Results, path: Path) -> None:
    """Write a results file, with one line per run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = dataclasses.asdict(results)
    runs = ",\n  ".join(json.dumps(run) for run in values.pop("runs"))
    head = json.dumps(values, indent=1)
    separator = "\n  " if runs else ""
    write_text(path, f'{head[:-2]},\n "runs": [{separator}{runs}]\n}}\n')


def load_results(path: Path) -> Results:
    """Return the content of a results file.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        runs = [
            RunResult(
                variant=run["variant"],
                seed=run["seed"],
                curves={name: [(tokens, loss) for tokens, loss in points] for name, points in run["curves"].items()},
            )
            for run in values["runs"]
        ]
        picture = {**values["picture"], "measures": tuple(values["picture"]["measures"])}
        return Results(
            **{
                **values,
                **{key: tuple(values[key]) for key in ("seeds", "variants", "failed")},
                "measures": tuple(Measure(**measure) for measure in values["measures"]),
                "picture": Picture(**picture),
                "runs": tuple(runs),
            }
        )
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such results file; run the experiment first") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not a results file ({error}); run the experiment again") from None
