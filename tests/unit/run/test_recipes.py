"""The shipped recipes from the literature resolve to the published numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.config.loader import load_config, parse_assignments
from ascend_cpt.config.values import Interval
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.errors import ConfigError
from ascend_cpt.recipe.schedule import learning_rate_at
from ascend_cpt.run.mindformers_yaml import make_mindformers_config
from ascend_cpt.run.resolve import resolve
from ascend_cpt.run.resolved_run import ResolvedRun

RECIPES = Path(__file__).resolve().parents[3] / "configs/recipes"
# The paper's pool of question answering: 2.8B tokens; the subset: 5B.
ROWS = {"qa": 680_000, "wikitext2": 650, "domain_subset": 1_220_704}
ResolveRun = Callable[..., ResolvedRun]


@pytest.fixture
def resolve_run(make_manifest: Callable[..., Manifest]) -> ResolveRun:
    def run(name: str, world_size: int, *assignments: str) -> ResolvedRun:
        config = load_config(RECIPES / f"{name}.yaml", parse_assignments(assignments))
        vocab_size = config.mindformers["model"]["model_config"]["vocab_size"]

        def make(source: str) -> Manifest:
            rows = ROWS.get(source, 10**8)
            return make_manifest(
                num_rows=rows, seq_length=config.cpt.seq_length, vocab_size=vocab_size, eod_id=2, pad_id=3
            )

        sets = config.cpt.validation.sets if config.cpt.validation else {}
        run = resolve(
            config,
            world_size=world_size,
            sources={source: make(source) for source in config.cpt.sources},
            validation={source: make(source) for source in sets},
        )
        assert make_mindformers_config(run, resume_from=None, init_from=None)["lr_schedule"]["type"]
        return run

    return run


def test_every_recipe_is_tested() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.stem for path in RECIPES.glob("*.yaml") if f'"{path.stem}"' not in text] == []
    assert len(list(RECIPES.glob("*.yaml"))) >= 8


def test_pai_has_50_steps_5_of_them_warmup(resolve_run: ResolveRun) -> None:
    run = resolve_run("pai_qwen2_72b", 32)
    assert (run.budget.total_steps, run.budget.warmup_steps) == (50, 5)
    assert run.schedule is not None
    assert (run.schedule.peak_lr, run.schedule.final_lr) == (5e-5, 5e-6)
    assert any("unused: pad_length 128" in note for note in run.notes)


def test_save_interval_longer_than_the_pai_run_is_a_warning(resolve_run: ResolveRun) -> None:
    run = resolve_run("pai_qwen2_72b", 32)
    assert run.config.cpt.checkpoint.every == Interval(count=1000, unit="steps")
    warnings = [note for note in run.notes if "cpt.checkpoint.every" in note]
    assert len(warnings) == 1
    assert "1000 steps is longer than the run of 50 steps (1.64M tokens); the only checkpoint is saved" in warnings[0]


def test_wikitext_follows_from_epochs(resolve_run: ResolveRun) -> None:
    run = resolve_run("mindformers_llama2_7b_wikitext", 8)
    budget = run.budget
    assert (budget.micro_batch_size, budget.num_accumulation_steps, budget.global_batch_size) == (1, 8, 64)
    assert (budget.total_steps, budget.warmup_steps) == (650 * 2 // 64, 1)
    assert run.schedule is not None and (run.schedule.peak_lr, run.schedule.final_lr) == (5e-5, 0.0)


def test_rule_of_thumb_peak_and_replay(resolve_run: ResolveRun) -> None:
    run = resolve_run("rule_of_thumb_7b", 8)
    assert run.schedule is not None and run.schedule.peak_lr == pytest.approx(3e-5)
    assert run.budget.warmup_steps == round(0.01 * run.budget.total_steps)
    four_times = resolve_run("rule_of_thumb_7b", 8, "cpt.global_batch_size=4096")
    assert four_times.schedule is not None and four_times.schedule.peak_lr == pytest.approx(6e-5)
    drawn = run.count_source_rows(0, run.budget.total_steps)
    assert drawn["general"] == pytest.approx(0.1 * sum(drawn.values()), abs=1)


def test_mindspeed_has_2000_steps(resolve_run: ResolveRun) -> None:
    run = resolve_run("mindspeed_qwen3_8b", 8)
    assert (run.budget.total_steps, run.budget.warmup_steps) == (2000, 20)
    assert run.schedule is not None
    assert (run.schedule.peak_lr, run.schedule.final_lr) == (1.25e-6, 1.25e-7)
    assert (run.layout.tensor_parallel, run.layout.pipeline_parallel) == (1, 4), "as printed"
    assert run.budget.num_accumulation_steps == 32


def test_nvidia_switches_at_a_fifth_of_the_peak(resolve_run: ResolveRun) -> None:
    run = resolve_run("nvidia_300b_two_phases", 128)
    assert run.schedule is not None
    assert (run.schedule.warmup_steps, run.schedule.peak_lr) == (0, 4.5e-5)
    assert run.schedule.final_lr == pytest.approx(4.5e-7)
    general, qa = run.phases
    assert general.stop_step / run.budget.total_steps == pytest.approx(0.711, abs=1e-3)
    assert learning_rate_at(run.schedule, qa.first_step) == pytest.approx(9e-6, rel=1e-3)
    drawn = run.count_source_rows(qa.first_step, qa.stop_step)
    assert drawn["qa"] == pytest.approx(0.1 * sum(drawn.values()), abs=1)


def test_nvidia_recipe_needs_more_than_two_epochs(resolve_run: ResolveRun) -> None:
    with pytest.raises(
        ConfigError, match=r"sources.qa: the run needs 8.66B tokens of this source \(3.11 epochs of 2.79B\)"
    ):
        resolve_run("nvidia_300b_two_phases", 128, "cpt.sources.qa.max_epochs=2")


@pytest.mark.parametrize("name", ["stability_gap_epochs", "stability_gap_quality", "stability_gap_mixture"])
def test_alarm_of_the_stability_gap_recipes_waits_60_percent_of_the_run(resolve_run: ResolveRun, name: str) -> None:
    run = resolve_run(name, 8)
    validation = run.config.cpt.validation
    assert validation is not None
    general = validation.sets["general"]
    assert general.on_increase == "stop" and general.patience is not None
    steps = general.patience.to_steps(run.budget.tokens_per_step)
    assert steps == pytest.approx(0.6 * run.budget.total_steps, abs=1)


def test_guide_names_the_stability_gap_recipes() -> None:
    guide = (RECIPES.parents[1] / "docs/recipes.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"`(stability_gap_\w+\.yaml)`", guide)) == sorted(
        path.name for path in RECIPES.glob("stability_gap_*.yaml")
    )


def test_subset_is_trained_on_for_four_epochs(resolve_run: ResolveRun) -> None:
    run = resolve_run("stability_gap_epochs", 8)
    drawn = run.count_source_rows(0, run.budget.total_steps)
    assert drawn["domain_subset"] / ROWS["domain_subset"] == pytest.approx(4, abs=1e-3)
    with pytest.raises(ConfigError, match="max_epochs is 4"):
        resolve_run("stability_gap_epochs", 8, "cpt.train_tokens=25B")


def test_high_quality_part_comes_first(resolve_run: ResolveRun) -> None:
    run = resolve_run("stability_gap_quality", 8)
    first, second = run.phases
    assert run.count_source_rows(first.first_step, first.stop_step)["rest"] == 0
    assert first.num_steps * run.budget.tokens_per_step == pytest.approx(8e9, rel=1e-3)
    drawn = run.count_source_rows(second.first_step, second.stop_step)
    assert drawn["rest"] / sum(drawn.values()) == pytest.approx(0.7, abs=1e-3)


def test_mixture_keeps_the_shares_of_the_base_model(resolve_run: ResolveRun) -> None:
    run = resolve_run("stability_gap_mixture", 8)
    drawn = run.count_source_rows(0, run.budget.total_steps)
    percent = {source: 100 * rows / sum(drawn.values()) for source, rows in drawn.items()}
    assert percent["domain"] + percent["web"] == pytest.approx(82, abs=0.01)
    assert percent["code"] == pytest.approx(4.5, abs=0.01) and percent["stackexchange"] == pytest.approx(2, abs=0.01)
