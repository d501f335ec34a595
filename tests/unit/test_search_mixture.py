"""The command line of tools/search_mixture.py, the proxies' configuration, the stored results and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.config.loader import load_config
from ascend_cpt.errors import CheckpointError, ConfigError
from ascend_cpt.mixture_search.command_line import parse_arguments
from ascend_cpt.mixture_search.proxies import Proxy, make_sections, to_blend
from ascend_cpt.mixture_search.report import describe_annealing, measure_sides, write_blend
from ascend_cpt.mixture_search.results import Result, Results
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
