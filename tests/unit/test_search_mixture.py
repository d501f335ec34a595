"""The command line of tools/search_mixture.py, the proxies' configuration, the stored results and the report."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.config.loader import load_config
from ascend_cpt.errors import CheckpointError, ConfigError, CptError
from ascend_cpt.mixture_search.command_line import parse_arguments
from ascend_cpt.mixture_search.proxies import Proxy, make_sections, to_blend
from ascend_cpt.mixture_search.report import describe_annealing, measure_sides, write_blend
from ascend_cpt.mixture_search.results import Result, Results
from ascend_cpt.mixture_search.search import main
from ascend_cpt.mixture_search.session import Harvest
from ascend_cpt.monitor.record import Record, StepRecord, ValidationRecord, to_values
from ascend_cpt.recipe.mixture.frontier import Goals

CONFIG = """
base_config: [{bases}/cpu_tiny.yaml, {bases}/qwen3_tiny.yaml]
cpt:
  run_name: mine
  init_from: base
  train_tokens: 1M
  schedule: {{peak_lr: 1e-3, final_lr: 1e-4}}
  replay: {{source: web, fraction: 0.1}}
  checkpoint: {{every: 100 steps}}
  sources:
    web: {{path: web, max_epochs: 1}}
    code: {{path: code}}
  validation:
    every: 10 steps
    sets:
      web: {{path: valid, max_increase: 0.1, on_increase: stop, patience: 20 steps}}
"""
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(bases=REPOSITORY / "configs/base"), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--proxies", "0"], "--proxies 0: must be at least 1"),
        (["--seeds", "1", "1"], "contains a seed twice"),
        (["--temperature", "-1"], "--temperature -1: must be between"),
        (["--microanneal", "--confirm", "3"], "--microanneal: cannot be combined"),
        (["--upweight", "1"], "--upweight 1: must be between 0 and 1"),
        (["--blend", "web=0.5"], "--blend 'web=0.5': expected weights"),
        (["--blend", "{web: -1}"], "expected weights"),
        (["--blend", "{web: 0}"], "expected weights"),
        (["--workers", "0"], "--workers 0: must be at least 1"),
    ],
)
def test_malformed_arguments(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_arguments("", ["config.yaml", "folder", *words])


def test_a_blend_may_be_pasted() -> None:
    for text in ("{web: 0.7, code: 0.3}", "blend: {web: 0.7, code: 0.3}", "web: 0.7, code: 0.3"):
        assert parse_arguments("", ["c.yaml", "f", "--blend", text]).blends == ({"web": 0.7, "code": 0.3},)


def test_proxies_differ_from_the_configuration_only_where_they_must(config: Path, tmp_path: Path) -> None:
    blends = [{"web": 0.25, "code": 0.75}, {"code": 1.0}]
    sections = make_sections(
        load_config(config), blends, steps=20, linear=False, seed=7, output_dir=tmp_path, tokens_per_step=1024
    )
    cpt = sections["cpt"]
    assert cpt["phases"] == [
        {"name": "proxy 1", "blend": blends[0], "tokens": 20480},
        {"name": "proxy 2", "blend": blends[1], "tokens": 20480},
    ]
    assert cpt["sources"] == {"web": {"path": "web"}, "code": {"path": "code"}}
    assert cpt["validation"] == {"every": "20 steps", "sets": {"web": {"path": "valid"}}}
    assert cpt["checkpoint"] == {"save": False} and cpt["restart_phases"] is True and sections["seed"] == 7
    assert "replay" not in cpt and "train_tokens" not in cpt and cpt["schedule"]["peak_lr"] == 1e-3
    # A source that no proxy uses would be an error.
    assert list(make_sections(load_config(config), blends[1:], steps=20, linear=False)["cpt"]["sources"]) == ["code"]
    annealed = make_sections(load_config(config), blends, steps=20, linear=True)
    assert annealed["cpt"]["schedule"] == {"kind": "linear", "peak_lr": 1e-3, "final_lr": 0, "warmup_tokens": 0}


def make_results(folder: Path, **settings: Any) -> Results:
    return Results(folder, {"configuration": {"lr": 1}, **settings}, ("web", "code"))


def test_results_are_continued_only_for_the_same_search(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    results.set_base([{"kind": "validation", "name": "web", "loss": 3.0}])
    results.add(Result(kind="design", shares=(0.5, 0.5), seed=1, values={"web": 2.5}))
    results.add(Result(kind="design", shares=(0.1, 0.9), seed=1, error="NaN"))
    again = make_results(tmp_path)
    found = again.find(Proxy(kind="given", shares=(0.5, 0.5), seed=1))
    assert found is not None and found.values == {"web": 2.5} and again.base == {"web": 3.0}
    assert again.find(Proxy(kind="design", shares=(0.5, 0.5), seed=2)) is None
    again.forget_failed()
    assert make_results(tmp_path).find(Proxy(kind="design", shares=(0.1, 0.9), seed=1)) is None
    with pytest.raises(ConfigError, match=r"search\.json: from another search \(settings\.weights"):
        make_results(tmp_path, weights=2)
    (tmp_path / "search.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read: .*; remove it to start the search again"):
        make_results(tmp_path)


def test_scores_are_recorded_with_their_direction(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    task = {"kind": "task", "name": "bits", "score": 1.5, "higher_is_better": False}
    results.set_base([{"kind": "validation", "name": "web", "loss": 3.0}, task])
    assert results.scores == {"bits"} and not results.higher_is_better and results.base["bits"] == 1.5


def test_the_snippet_can_be_pasted() -> None:
    assert write_blend(("web", "code", "qa"), (0.65, 0.35, 0.0)) == "blend: {web: 0.65, code: 0.35}"
    assert to_blend(("web", "code"), (0.1, 0.9)) == {"web": 0.1, "code": 0.9}


def test_forgetting_and_gain_of_a_measurement() -> None:
    goals = Goals(general=("web",), others=("code", "qa"), base={"web": 3.0, "code": 4.0, "qa": 2.0})
    forgetting, gain = measure_sides(goals, {"web": 3.25, "code": 3.5, "qa": 1.75})
    assert forgetting == pytest.approx(0.25) and gain == pytest.approx(0.375)


def test_changes_of_a_microanneal_are_paired_by_seed() -> None:
    def result(seed: int, loss: float, error: str = "") -> Result:
        return Result(kind="anneal", shares=(1.0,), seed=seed, values={} if error else {"web": loss}, error=error)

    results = {
        "": [result(1, 3.0), result(2, 4.0)],
        "web": [result(1, 2.9), result(2, 3.8)],
        "code": [result(1, 3.5), result(2, 0, "NaN")],
    }
    table, values = describe_annealing(("web", "code"), results, ("web",))
    assert "| web | -0.1500 ± 0.0707 |" in table and "| code | +0.5000 |" in table
    assert values["web"]["web"]["seeds"] == 2 and values["code"]["web"]["deviation"] is None
    json.dumps(values)


def step(number: int) -> StepRecord:
    return StepRecord(
        step=number,
        total_steps=30,
        loss=3.0,
        learning_rate=1e-3,
        grad_norm=1.0,
        tokens=number,
        step_time_s=0.5,
        tokens_per_s=2.0,
    )


def loss(number: int, name: str, value: float) -> ValidationRecord:
    return ValidationRecord(step=number, name=name, loss=value, num_labels=8)


def test_results_are_collected_while_a_launch_is_running(tmp_path: Path) -> None:
    """A launch of three proxies of 10 steps: the second diverges, and the third is not done."""
    results, metrics = make_results(tmp_path), tmp_path / "metrics.jsonl"
    group = [Proxy(kind="design", shares=(share, 1 - share), seed=1) for share in (0.1, 0.2, 0.3)]
    harvest = Harvest(metrics, group, results, steps=10, measures=("web", "code"))
    assert harvest.collect() == [] and not harvest.has_begun

    def write(*records: Record) -> None:
        with metrics.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(to_values(record)) + "\n" for record in records)

    write(loss(0, "web", 3.0), loss(0, "code", 4.0), step(1))
    assert harvest.collect() == [] and results.base == {"web": 3.0, "code": 4.0} and harvest.has_begun
    write(step(10), loss(10, "web", 2.5))
    assert harvest.collect() == []  # the second set is not written yet
    write(loss(10, "code", 3.5))
    (first,) = harvest.collect()
    assert first.values == {"web": 2.5, "code": 3.5} and not harvest.has_begun and harvest.num_done == 1
    write(step(11), step(20), loss(20, "web", float("nan")), loss(20, "code", 3.0), step(21))
    (second,) = harvest.collect()
    assert second.error == "web is not finite" and second.values == {} and harvest.has_begun
    again = make_results(tmp_path)
    assert [one.error for one in again.list_results(["design"])] == ["", "web is not finite"]
    assert harvest.step == 21 and harvest.elapsed_s == 2.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "web"),  # the dataset is missing
        (["--set", "cpt.validation=null"], "nothing to measure"),
        (["--set", "cpt.sources.code=null"], "cpt.sources"),
        (["--set", "cpt.sourcs.x=1"], "did you mean 'sources'"),
        (["--microanneal", "--set", "cpt.schedule.peak_lr=null"], "--microanneal: decays from cpt.schedule.peak_lr"),
    ],
)
def test_mistakes(config: Path, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(CptError) as caught:
        main(parse_arguments("", [str(config), str(tmp_path / "search"), *words]))
    assert message in str(caught.value) and not (tmp_path / "search/search.json").exists()


def test_a_folder_has_one_search_at_a_time(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    folder.mkdir()
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="another search is running there"):
            main(parse_arguments("", [str(config), str(folder)]))
