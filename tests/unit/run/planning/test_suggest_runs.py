"""Suggestions for configurations: accepted by the program, never slower than the given one, and written as YAML."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from ascend_cpt.errors import ConfigError
from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.run.mindformers_yaml import make_mindformers_config
from ascend_cpt.run.planning.changes import list_changes
from ascend_cpt.run.planning.plan_run import Cluster, plan_run
from ascend_cpt.run.planning.suggest_runs import Goal, suggest_runs

REPOSITORY = Path(__file__).resolve().parents[4]
SMALL = REPOSITORY / "tests/even_layouts/cpt_qwen3_4b_4k.yaml"
LARGE = REPOSITORY / "configs/llama3/cpt_llama3_70b.yaml"
SLOW = {
    "parallel_config": {"data_parallel": 1, "model_parallel": 8, "pipeline_stage": 1, "use_seq_parallel": True},
    "recompute_config.recompute": True,
    "model.model_config.offset": 0,
}
RECOMPUTED = {"recompute_config.recompute": True, "recompute_config.select_recompute": False}


def cluster(num_nodes: int | None = None) -> Cluster:
    return Cluster(num_nodes=num_nodes, devices_per_node=8, device="910B", device_bytes=64 * GIGABYTE)


def test_70b_on_64_devices_is_searched_quickly_and_written(tmp_path: Path) -> None:
    given = {
        "parallel_config": {"data_parallel": 2, "model_parallel": 8, "pipeline_stage": 4},
        "recompute_config": {"recompute": [9, 3, 0, 0], "select_recompute": False},
        "model.model_config.offset": 0,
        "runner_config.batch_size": 1,
    }
    start = time.process_time()
    found = suggest_runs(LARGE, given, cluster(), Goal())
    assert time.process_time() - start < 10
    assert found.given is not None and found.given.fits and found.plans
    speeds = [plan.time.tokens_per_s for plan in found.plans]
    assert speeds == sorted(speeds, reverse=True) and min(speeds) > found.given.time.tokens_per_s
    assert "0 given" in found.render() and "+" in found.render()
    target = tmp_path / "folder" / "best.yaml"
    found.write(target)
    _, plan = plan_run(target, {}, cluster())
    assert plan.case == found.plans[0].case and plan.time == found.plans[0].time and plan.fits
    assert [path.name for path in target.parent.iterdir()] == ["best.yaml"]


def test_a_chunked_loss_is_suggested_and_written(tmp_path: Path) -> None:
    path, whole = REPOSITORY / "configs/qwen3/cpt_qwen3_0_6b_32k.yaml", {"cpt.loss_chunks": 1}
    found = suggest_runs(path, {**SLOW, **whole}, cluster(), Goal())
    chunks = found.plans[0].case.loss_chunks
    assert (
        chunks > 1 and f"loss_chunks {chunks}" in found.render() and f"cpt: {{loss_chunks: {chunks}}}" in found.render()
    )
    found.write(tmp_path / "best.yaml")
    run, plan = plan_run(tmp_path / "best.yaml", {}, cluster())
    assert run.config.cpt.loss_chunks == chunks and plan.case == found.plans[0].case


def test_the_loss_is_whole_again_where_that_is_faster() -> None:
    found = suggest_runs(SMALL, {**RECOMPUTED, "cpt.loss_chunks": 8}, cluster(), Goal())
    assert found.plans[0].case.loss_chunks == 1 and found.changes[0]["cpt.loss_chunks"] == 1


def test_a_run_that_needs_the_logits_is_suggested_without_chunks() -> None:
    given = {**SLOW, "cpt.loss_chunks": 1, "monitor_config.local_loss_format": "log"}
    found = suggest_runs(REPOSITORY / "configs/qwen3/cpt_qwen3_0_6b_32k.yaml", given, cluster(), Goal())
    assert found.plans and {plan.case.loss_chunks for plan in found.plans} == {1}


def test_given_layout_is_ignored_on_other_nodes() -> None:
    found = suggest_runs(SMALL, {"parallel_config.data_parallel": 3}, cluster(1), Goal())
    assert found.given is None and "but the launch has 8 devices" in found.problem
    assert found.plans and {plan.case.layout.world_size for plan in found.plans} == {8}
    assert "the given layout is not used" in found.render()


def test_failure_names_the_nodes_that_would_do(tmp_path: Path) -> None:
    found = suggest_runs(REPOSITORY / "configs/llama2/cpt_llama2_13b_4k.yaml", {"cpt.global_batch_size": 64},
                         dataclasses.replace(cluster(1), device_bytes=24 * GIGABYTE), Goal())  # fmt: skip
    assert not found.plans and "nodes suffice (--nodes " in found.render()
    with pytest.raises(ConfigError, match="suffice"):
        found.write(tmp_path / "none.yaml")
    assert not list(tmp_path.iterdir())


def test_cost_and_deadline() -> None:
    cheap = suggest_runs(SMALL, RECOMPUTED, cluster(2), Goal(objective="cost"))
    hours = [record["device_hours"] for record in cheap.to_records()]
    assert hours == sorted(hours) and hours
    assert all(record["gain"] > 0 for record in cheap.to_records())
    quick = suggest_runs(SMALL, {}, cluster(4), Goal(objective="nodes", days=1.5))
    assert quick.plans and all(plan.days is not None and plan.days <= 1.5 for plan in quick.plans)
    impossible = suggest_runs(SMALL, {}, cluster(1), Goal(objective="nodes", days=0.01))
    assert "no layout on up to 1 node finishes within 0.01 days" in impossible.render()


def test_nothing_is_written_over_the_given_configuration() -> None:
    found = suggest_runs(SMALL, RECOMPUTED, cluster(), Goal())
    before = SMALL.read_bytes()
    with pytest.raises(ConfigError, match="is the configuration that is planned"):
        found.write(SMALL)
    assert SMALL.read_bytes() == before


def test_micro_batches_of_the_configuration_are_replaced() -> None:
    given = {"runner_config.gradient_accumulation_steps": 32, "parallel_config": {"data_parallel": 4,
             "model_parallel": 2, "pipeline_stage": 1}, "runner_config.batch_size": 1,
             "cpt.global_batch_size": 128, "recompute_config.recompute": True}  # fmt: skip
    found = suggest_runs(SMALL, given, cluster(), Goal())
    assert found.plans and any("runner_config.gradient_accumulation_steps" in changes for changes in found.changes)


FEW_MICRO_BATCHES = {
    "parallel_config": {"data_parallel": 1, "model_parallel": 2, "pipeline_stage": 4, "use_seq_parallel": True},
    "runner_config.batch_size": 1,
    "cpt.global_batch_size": 4,
    "recompute_config.recompute": True,
    "model.model_config.offset": 0,
    "model.model_config.num_hidden_layers": 18,
}


def test_interleaved_stages_are_written_and_accepted(tmp_path: Path) -> None:
    found = suggest_runs(SMALL, FEW_MICRO_BATCHES | {"model.model_config.offset": [1, 1, 0, 0]}, cluster(),
                         Goal(interleaves=True))  # fmt: skip
    place, best = next((place, plan) for place, plan in enumerate(found.plans) if plan.case.interleave == 2)
    changes = found.changes[place]
    assert changes["model.model_config.pp_interleave_num"] == 2
    run, plan = plan_run(SMALL, FEW_MICRO_BATCHES | dict(changes), cluster())
    assert plan.time == best.time and plan.case == dataclasses.replace(best.case, can_interleave=False)
    sections = make_mindformers_config(run, resume_from=None, init_from=None)
    assert sections["parallel"]["pipeline_config"] == {"pipeline_interleave": True}
    assert run.describe_layout()["stage_parts"] == 2
    assert sum(run.describe_layout()["stage_layers"]) == 18


def test_layers_of_interleaved_stages_are_written_for_each_part() -> None:
    run, plan = plan_run(SMALL, FEW_MICRO_BATCHES | {"model.model_config.offset": [1, 1, 0, 0]}, cluster())
    case = dataclasses.replace(plan.case, interleave=2)
    assert list_changes(case, run.config)["model.model_config.offset"] == [[1, 1, 0, 0], [0, 0, 0, 0]]


def test_no_suggestion_is_slower_than_the_given_layout() -> None:
    few = FEW_MICRO_BATCHES | {"model.model_config.offset": [1, 1, 0, 0]}
    for given in (RECOMPUTED, few, {"recompute_config.recompute": False}):
        found = suggest_runs(SMALL, given, cluster(), Goal())
        assert found.given is not None
        if found.given.fits:
            assert all(plan.time.tokens_per_s > found.given.time.tokens_per_s for plan in found.plans)
        speeds = [plan.time.tokens_per_s for plan in found.plans]
        assert speeds == sorted(speeds, reverse=True)
