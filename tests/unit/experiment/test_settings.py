"""Experiment files: the shipped ones, and mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ascend_cpt.errors import ConfigError
from ascend_cpt.experiment.jobs import BASE, list_jobs, make_job
from ascend_cpt.experiment.settings import Training, find_experiment, load_experiment, to_slug

REPO_ROOT = Path(__file__).resolve().parents[3]
EXPERIMENTS = REPO_ROOT / "experiments"
SHIPPED = sorted(EXPERIMENTS.glob("*.yaml"))

TEXT = """
title: T
claim: C.
source: arXiv 1
base: {config: configs/qwen3/cpt_qwen3_tiny_base.yaml}
continuation: {config: configs/qwen3/cpt_qwen3_tiny.yaml}
variants:
  - {name: one}
  - {name: two, set: {cpt.schedule.peak_lr: 1e-3}}
measures:
  - {name: code loss, set: code}
picture: {kind: bars, measures: [code loss]}
quick: {base_tokens: 30K, tokens: 15K}
"""


def write(folder: Path, old: str = "", new: str = "") -> Path:
    assert old in TEXT
    path = folder / "x.yaml"
    path.write_text(TEXT.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("quick", [False, True])
def test_shipped_experiments_are_valid(path: Path, quick: bool) -> None:
    experiment = load_experiment(path)
    assert len(experiment.seeds) >= 3
    jobs = list_jobs(experiment, experiment.seeds, quick=quick)
    assert len(jobs) == len(experiment.seeds) * (1 + len(experiment.variants))
    assert len({job.name for job in jobs}) == len(jobs), "no two runs share a folder"


def test_shipped_experiments_are_found() -> None:
    assert {"replay", "peak_rate", "warmup", "rewarm"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("claim: C.\n", "", "claim"),
        ("title: T", "title: T\ncolour: red", r"x.yaml:3: colour"),
        ("name: two", "name: one", "'one' is used twice"),
        ("name: two", "name: '%'", "has no letter or digit"),
        ("cpt.schedule.peak_lr: 1e-3", "cpt.init_from: random", "cpt.init_from is set by the runner"),
        ("set: code}", "set: code, value: best}", "'best' is not one of change, peak, early, final"),
        ("kind: bars", "kind: pie", "'pie' is not one of frontier, bars, curves"),
        ("kind: bars", "kind: frontier", "two measures"),
        ("kind: bars", "kind: curves", "picture.set: missing"),
        ("measures: [code loss]", "measures: [prose loss]", "no measure 'prose loss'; use code loss"),
        ("variants:\n  - {name: one}\n  - {name: two, set: {cpt.schedule.peak_lr: 1e-3}}", "variants: []", "empty"),
        ("title: T", "title: T\nseeds: [1, 1]", "none twice"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(write(tmp_path, old, new))


def test_a_mistake_in_a_run_is_found_before_the_first_run(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, "cpt.schedule.peak_lr", "cpt.schedule.peek_lr"))
    with pytest.raises(ConfigError, match="peek_lr"):
        list_jobs(experiment, (1,), quick=False)


def test_an_unknown_experiment_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"replai: no such experiment.*replay"):
        find_experiment("replai", EXPERIMENTS)


def test_quick_changes_the_budgets(tmp_path: Path) -> None:
    jobs = list_jobs(load_experiment(write(tmp_path)), (1,), quick=True)
    assert [job.tokens for job in jobs] == [30_000, 15_000, 15_000]
    assert [job.variant for job in jobs] == [BASE, "one", "two"]


def make(tokens: int = 100_000, seed: int = 1, needs: str | None = "b", **overrides: object) -> str:
    training = Training(
        config="configs/qwen3/cpt_qwen3_tiny.yaml", set={key.replace("__", "."): v for key, v in overrides.items()}
    )
    return make_job(training, "v", seed, needs, tokens).name


def test_each_setting_changes_the_name_of_the_run() -> None:
    names = {make(), make(seed=2), make(needs="c"), make(tokens=50_000), make(cpt__schedule__peak_lr=1e-3)}
    names.add(make(optimizer__weight_decay=0.5))
    assert len(names) == 6
    assert make() == make(), "the same settings are the same run"
    assert make(cpt__schedule__peak_lr=2e-3) == make(), "the value that the configuration has anyway"


def test_a_new_key_does_not_change_the_names() -> None:
    """The name of a run, whose settings are in the configuration and the call."""
    assert make(cpt__loss_chunks=1, cpt__schedule__cycles=1) == make(), "defaults"
    assert make(cpt__loss_chunks=2) != make()


def test_a_changed_dataset_is_another_run(tmp_path: Path) -> None:
    names = set()
    for text in ("{}", "[]"):
        (tmp_path / "d.manifest.json").write_text(text, encoding="utf-8")
        names.add(make(cpt__sources__code__path=str(tmp_path / "d")))
    assert len(names) == 2


def test_slug() -> None:
    assert to_slug("5 % replay, 1/10") == "5_replay_1_10"
