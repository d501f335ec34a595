"""The comparison of plan and compiled rank detects every wrong sharding rule."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascend_cpt.backend.simulated_rank.messages import ParameterOnRank
from ascend_cpt.plan import slices
from ascend_cpt.plan.case import GIGABYTE, TrainingCase
from ascend_cpt.run.planning.plan_run import Cluster, plan_run
from ascend_cpt.simulate.compare_slices import find_differences, select_model_parameters
from ascend_cpt.simulate.run_rank import RankResult
from tests.small_model import SMALL

REPOSITORY = Path(__file__).resolve().parents[3]
# Rank 0 of `write_config` as compiled by MindSpore 2.9.0 on the simulated device: name, shape, shape after tensor
# parallel, stored shape.
COMPILED = json.loads(Path(__file__).with_name("compiled_rank.json").read_text(encoding="utf-8"))
RESULT = RankResult(
    rank=0,
    stage=0,
    parameters=tuple(
        ParameterOnRank(name=name, shape=shape, tensor_shape=tensor_shape, stored_shape=stored_shape)
        for name, shape, tensor_shape, stored_shape in COMPILED
    ),
)


def write_config(folder: Path) -> Path:
    """Write a small Qwen2 (attention biases) with optimizer states sharded over groups of two ranks."""
    config: dict[str, Any] = {
        "base_config": [
            str(REPOSITORY / "configs/base" / name)
            for name in ("atlas_a2_8x64g.yaml", "placeholders.yaml", "models/qwen2_72b.yaml")
        ],
        "parallel_config": {"data_parallel": 4, "model_parallel": 2, "pipeline_stage": 1, "use_seq_parallel": True},
        "parallel": {
            "parallel_optimizer_config": {"optimizer_weight_shard_size": 2, "parallel_optimizer_threshold": 0}
        },
        "runner_config": {"batch_size": 1},
        "cpt": {"init_from": "random", "seq_length": 2048, "global_batch_size": 4},
        "model": {"model_config": SMALL},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.fixture
def case(tmp_path: Path) -> TrainingCase:
    cluster = Cluster(num_nodes=None, devices_per_node=8, device="910B", device_bytes=64 * GIGABYTE)
    return plan_run(write_config(tmp_path), {}, cluster)[1].case


def test_plan_matches_the_compiled_rank(case: TrainingCase) -> None:
    assert find_differences(case, RESULT) == []


@pytest.mark.parametrize("ending", [ending for ending in slices.TENSOR_AXES if "lora" not in ending])
def test_wrong_tensor_parallel_rule_is_detected(
    case: TrainingCase, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.delitem(slices.TENSOR_AXES, ending)
    differences = find_differences(case, RESULT)
    assert differences and all(ending in line for line in differences)
    assert any("after tensor parallel" in line for line in differences)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer_shard_size": None},
        {"optimizer_shard_size": 4},
        {"shards_optimizer": False},
        {"shard_threshold_bytes": 64 * 1024},
    ],
)
def test_wrong_optimizer_sharding_rule_is_detected(case: TrainingCase, changes: dict[str, Any]) -> None:
    differences = find_differences(dataclasses.replace(case, **changes), RESULT)
    assert differences and all(": stored " in line for line in differences)


def test_parameters_of_another_stage_are_detected(case: TrainingCase) -> None:
    without = dataclasses.replace(RESULT, parameters=RESULT.parameters[1:])
    assert [line for line in find_differences(case, without) if "not compiled on stage 0" in line]
    added = ParameterOnRank(name="decoder.layers.2.x", shape=[1], tensor_shape=[1], stored_shape=[1])
    with_more = dataclasses.replace(RESULT, parameters=(*RESULT.parameters, added))
    assert find_differences(case, with_more) == ["decoder.layers.2.x: not planned on stage 0"]


def test_the_sums_of_routers_are_not_part_of_the_plan() -> None:
    names = ("decoder.layers.0.mlp.router.fi_accu", "decoder.layers.0.mlp.router.load_sum")
    added = [ParameterOnRank(name=name, shape=[8], tensor_shape=[8], stored_shape=[8]) for name in names]
    assert select_model_parameters(added) == []
