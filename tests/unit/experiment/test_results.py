"""Measures, tables and pictures of results, and the checked-in results files."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from ascend_cpt.errors import ConfigError
from ascend_cpt.experiment.jobs import list_jobs, read_curves
from ascend_cpt.experiment.render import draw_picture, render_table
from ascend_cpt.experiment.results import Results, RunResult, compute, load_results, save_results, summarize
from ascend_cpt.experiment.settings import Measure, Picture, load_experiment

REPO_ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = sorted((REPO_ROOT / "experiments" / "results").glob("*.json"))
POINTS = [(0, 5.0), (100, 5.5), (300, 5.25), (400, 4.5)]


def make_results(*runs: RunResult, seeds: tuple[int, ...] = (1, 2), kind: str = "bars") -> Results:
    return Results(
        title="T",
        claim="C.",
        source="S",
        quick=False,
        seeds=seeds,
        variants=("one", "two"),
        measures=(Measure(name="code loss", set="code"), Measure(name="end", set="code", value="final")),
        picture=Picture(kind=kind, measures=("code loss", "end"), set="code"),
        settings={},
        machine={"cores": 2},
        versions={},
        runs=runs,
        failed=(),
    )


def make_run(variant: str, seed: int, last: float) -> RunResult:
    return RunResult(variant=variant, seed=seed, curves={"code": [(0, 5.0), (100, last)]})


RUNS = (make_run("one", 1, 4.0), make_run("one", 2, 4.5), make_run("two", 1, 4.0))


@pytest.mark.parametrize(
    ("value", "at", "expected"),
    [("change", 0, -0.5), ("peak", 0, 0.5), ("final", 0, 4.5), ("early", 0.25, 0.5), ("early", 0.5, 0.25)],
)
def test_measures(value: str, at: float, expected: float) -> None:
    assert compute(Measure(name="m", set="code", value=value, at=at), {"code": POINTS}) == pytest.approx(expected)


def test_a_measure_of_an_unknown_set_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no validation set 'prose'; use code"):
        compute(Measure(name="m", set="prose"), {"code": POINTS})


def test_summary() -> None:
    assert summarize([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert summarize([1.0]) == (1.0, 0.0)


def test_table_names_missing_seeds() -> None:
    assert render_table(make_results(*RUNS)) == (
        "| variant | code loss | end |\n| --- | --- | --- |\n"
        "| one | -0.750 ± 0.354 | 4.250 ± 0.354 |\n| two (1 of 2 seeds) | -1.000 | 4.000 |\n"
    )


def test_table_of_a_variant_without_a_run() -> None:
    assert "| two (0 of 2 seeds) | failed | failed |" in render_table(make_results(*RUNS[:2]))


@pytest.mark.parametrize("kind", ["frontier", "bars", "curves"])
def test_picture_is_drawn_and_repeatable(tmp_path: Path, kind: str) -> None:
    results = make_results(*RUNS, kind=kind)
    draw_picture(results, tmp_path / "a.png")
    draw_picture(results, tmp_path / "b.png")
    draw_picture(make_results(*RUNS[:2], kind=kind), tmp_path / "c.png")
    first, second, other = (tmp_path.joinpath(f"{name}.png").read_bytes() for name in "abc")
    assert first == second != other


def test_results_are_read_as_written(tmp_path: Path) -> None:
    results = dataclasses.replace(make_results(*RUNS), failed=("two, seed 2: out of memory",))
    save_results(results, tmp_path / "r.json")
    assert load_results(tmp_path / "r.json") == results


@pytest.mark.parametrize("text", ["", "[]", '{"runs": []}', "{"])
def test_a_damaged_results_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="not a results file"):
        load_results(tmp_path / "r.json")
    with pytest.raises(ConfigError, match="no such results file"):
        load_results(tmp_path / "missing.json")


def write_metrics(folder: Path, *records: dict[str, object]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def step(number: int) -> dict[str, object]:
    return {"kind": "step", "step": number, "total_steps": 2, "tokens": 10 * number, "loss": 1.0}


def validation(number: int, loss: float) -> dict[str, object]:
    return {"kind": "validation", "step": number, "name": "code", "loss": loss}


def test_losses_of_a_complete_run(tmp_path: Path) -> None:
    write_metrics(tmp_path, validation(0, 3.0), step(1), step(2), validation(2, 2.0))
    assert read_curves(tmp_path) == {"code": [(0, 3.0), (20, 2.0)]}


@pytest.mark.parametrize(
    "records",
    [
        (),
        (validation(0, 3.0),),
        (validation(0, 3.0), step(1)),
        (validation(0, 3.0), step(1), step(2)),
        (validation(0, 3.0), step(1), validation(1, 2.5)),
        (step(1), step(2)),
    ],
)
def test_an_incomplete_run_has_no_result(tmp_path: Path, records: tuple[dict[str, object], ...]) -> None:
    assert read_curves(tmp_path) is None
    write_metrics(tmp_path, *records)
    assert read_curves(tmp_path) is None


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_results_are_in_the_documentation(path: Path) -> None:
    """The table is that of the results file, and the file's settings are those of the experiment."""
    results = load_results(path)
    page = (REPO_ROOT / "docs/experiments.md").read_text(encoding="utf-8")
    assert render_table(results) in page
    assert f"pictures/experiments/{path.stem}.png" in page
    assert (REPO_ROOT / "docs/pictures/experiments" / f"{path.stem}.png").is_file()
    assert not results.quick
    experiment = load_experiment(REPO_ROOT / "experiments" / f"{path.stem}.yaml")
    jobs = list_jobs(experiment, results.seeds[:1], quick=False)
    wanted = {job.variant: {"config": job.config, "tokens": job.tokens, "set": dict(job.overrides)} for job in jobs}
    assert results.settings == json.loads(json.dumps(wanted)), "the experiment has changed: run it again"
    assert (results.measures, results.picture) == (experiment.measures, experiment.picture)


def test_every_experiment_is_in_the_documentation() -> None:
    page = (REPO_ROOT / "docs/experiments.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`experiments/(\w+)\.yaml`", page))
    assert named == {path.stem for path in (REPO_ROOT / "experiments").glob("*.yaml")}
