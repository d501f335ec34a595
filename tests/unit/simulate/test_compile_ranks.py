"""A configuration is resolved without data, shortened for compiling, and refused if it cannot be trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from ascend_cpt.config.loader import load_config
from ascend_cpt.errors import ConfigError
from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.plan.report import render
from ascend_cpt.run.planning.assumed_run import resolve_without_data
from ascend_cpt.run.planning.plan_run import Cluster, plan_run
from ascend_cpt.run.planning.suggest_runs import Goal, suggest_runs
from ascend_cpt.run.planning.training_case import build_case
from ascend_cpt.simulate.compile_ranks import load_shortened

REPOSITORY = Path(__file__).resolve().parents[3]
QWEN3_8B = REPOSITORY / "tests/even_layouts/cpt_qwen3_8b.yaml"
LLAMA3_70B = REPOSITORY / "tests/even_layouts/cpt_llama3_70b.yaml"


def make_cluster(num_nodes: int | None = None, device: str = "910B") -> Cluster:
    return Cluster(num_nodes=num_nodes, devices_per_node=8, device=device, device_bytes=64 * GIGABYTE)


def test_case_matches_the_configuration() -> None:
    run, plan = plan_run(LLAMA3_70B, {}, make_cluster())
    case = build_case(run)
    assert case == plan.case
    assert case.layers_per_stage == case.recomputed_layers == (20, 20, 20, 20)
    assert (case.micro_batch_size, case.num_micro_batches, case.sequence_parallel) == (1, 128, True)
    assert (case.param_bytes, case.compute_bytes, case.shards_optimizer) == (4, 2, True)
    assert plan.limits.usable_bytes == 58 * GIGABYTE
    assert plan.total_tokens <= 50 * 10**9 < plan.total_tokens + case.tokens_per_step


def test_shortening_keeps_the_layout_and_the_micro_batch() -> None:
    run, _ = plan_run(LLAMA3_70B, {}, make_cluster())
    short = load_shortened(run, {"seed": 7}, layers_per_stage=2, micro_batches=8)
    case = build_case(resolve_without_data(short, run.layout.world_size))
    assert case.layers_per_stage == (2, 2, 2, 2)
    assert (case.micro_batch_size, case.num_micro_batches) == (1, 8)
    assert case.layout == run.layout and short.mindformers["seed"] == 7


def test_shortening_adapts_configured_accumulation() -> None:
    overrides = {"parallel_config.micro_batch_num": 128, "model.model_config.offset": [0, 0, 0, 0]}
    run, _ = plan_run(LLAMA3_70B, overrides, make_cluster())
    short = load_shortened(run, overrides, layers_per_stage=None, micro_batches=8)
    case = build_case(resolve_without_data(short, run.layout.world_size))
    assert case.num_micro_batches == 8 and case.layers_per_stage == (20, 20, 20, 20)


@pytest.mark.parametrize(
    ("overrides", "num_nodes", "words"),
    [
        ({"parallel_config.model_parallel": 3}, None, "model_parallel 3 does not divide num_attention_heads 32"),
        ({"parallel_config.pipeline_stage": 5}, None, "pipeline_stage 5 does not divide num_hidden_layers 36"),
        ({}, 3, "but the launch has 24 devices"),
        ({"cpt.global_batch_size": 127}, None, "global_batch_size 127"),
        ({"parallel_config.model_parallel": 16}, None, "model_parallel 16 does not divide num_key_value_heads 8"),
        ({"parallel_config.model_parallel": 1}, None, "use_seq_parallel needs model_parallel above 1"),
        ({"cpt.seq_length": 1024}, None, "use_attn_mask_compression needs rows of at least 2048 tokens"),
        ({"parallel_config.data_parallel": 1, "parallel_config.model_parallel": 1,
          "parallel_config.use_seq_parallel": False}, None, "one device cannot accumulate gradients"),
        ({"context.device_target": "CPU"}, None, "context.device_target is CPU"),
        ({"context.max_device_memory": "58"}, None, "expected a size such as 58GB"),
    ],
)  # fmt: skip
def test_invalid_configuration_is_refused_before_compiling(
    overrides: dict[str, object], num_nodes: int | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_run(QWEN3_8B, overrides, make_cluster(num_nodes))


def test_budget_in_epochs_is_unknown_without_datasets() -> None:
    overrides = {"cpt.train_tokens": None, "runner_config.epochs": 2, "cpt.checkpoint.keep_last": 2}
    _, plan = plan_run(QWEN3_8B, overrides, make_cluster())
    assert plan.total_tokens is None and plan.days is None
    assert plan.checkpoints.disk_bytes == 3 * plan.checkpoints.num_bytes
    assert "budget    unknown" in render(plan)


@pytest.mark.parametrize(("given", "shards"), [(None, None), (-1, None), (1, None), (4, 4)])
def test_optimizer_shard_size_of_the_configuration(given: int | None, shards: int | None) -> None:
    overrides = {"parallel.parallel_optimizer_config.optimizer_weight_shard_size": given}
    _, plan = plan_run(QWEN3_8B, overrides, make_cluster())
    assert plan.case.optimizer_shard_size == shards


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        (QWEN3_8B, {}),  # with validation, which pipeline stages do not have
        (QWEN3_8B, {"cpt.validation": None, "parallel_config.context_parallel": 2, "parallel_config.data_parallel": 1}),
    ],
)
def test_suggestion_is_a_valid_configuration(path: Path, overrides: dict[str, object], tmp_path: Path) -> None:
    found = suggest_runs(path, overrides, make_cluster(), Goal())
    found.write(tmp_path / "best.yaml")
    _, again = plan_run(tmp_path / "best.yaml", {}, make_cluster())
    assert again.case == found.plans[0].case and again.fits


@pytest.mark.parametrize(
    ("given", "layers"), [(True, (20, 20, 20, 20)), (False, (0, 0, 0, 0)), ([10, 50, False, True], (10, 20, 0, 20))]
)
def test_recomputation_is_a_switch_or_a_list_by_stage(given: object, layers: tuple[int, ...]) -> None:
    _, plan = plan_run(LLAMA3_70B, {"recompute_config.recompute": given}, make_cluster())
    assert plan.case.recomputed_layers == layers


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1, 2], "pipeline_stage is 4, but recompute_config.recompute has 2 values"),
        ([1, -1, 0, 0], "expected True, False or a list"),
        ("all", "expected True, False or a list"),
    ],
)
def test_recomputation_that_is_neither_is_refused(given: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_run(LLAMA3_70B, {"recompute_config.recompute": given}, make_cluster())


def test_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="--device 910Z: unknown"):
        plan_run(QWEN3_8B, {}, make_cluster(device="910Z"))


def test_cluster_size_is_required(tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text(
        f"base_config: {QWEN3_8B}\nparallel_config: {{data_parallel: null}}\ncpt: {{run_name: x}}\n", encoding="utf-8"
    )
    assert load_config(config).cpt.run_name == "x"
    with pytest.raises(ConfigError, match="the size of the cluster is unknown"):
        plan_run(config, {}, make_cluster())
    assert plan_run(config, {}, make_cluster(2))[0].layout.data_parallel == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"swap_config.swap": True}, "swap_config.swap True: plans do not cover activations in the host's memory"),
        (
            {"parallel.pipeline_config.pipeline_scheduler": "gpipe"},
            "pipeline_scheduler gpipe: plans do not cover pipeline schedules other than 1f1b",
        ),
    ],
)
def test_settings_that_the_plan_does_not_cover_are_rejected(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_run(QWEN3_8B, changes, make_cluster())
