"""Expert parallelism in the checks of layouts, the slices, the memory and the time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.plan.activations import count_layer_bytes
from ascend_cpt.plan.case import TrainingCase
from ascend_cpt.plan.layout import find_layout_problems, find_switch_problems
from ascend_cpt.plan.machines import MACHINES
from ascend_cpt.plan.search.candidates import list_layouts
from ascend_cpt.plan.slices import slice_parameters
from ascend_cpt.plan.speed.throughput import estimate_step

MACHINE = MACHINES["910B"]
MakeCase = Callable[..., TrainingCase]
MOE = {"model_type": "qwen3_moe", "num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 512}


def make_moe(make_case: MakeCase, layout: tuple[int, int, int, int], expert: int, **changes: Any) -> TrainingCase:
    case = make_case(layout, model=MOE, **changes)
    return dataclasses.replace(case, layout=dataclasses.replace(case.layout, expert_parallel=expert))


@pytest.mark.parametrize(
    ("model", "expert", "words"),
    [
        ({"model_type": "qwen3"}, 2, "expert_parallel 2: the model has no experts"),
        (MOE, 3, "expert_parallel 3 does not divide num_experts 16"),
        (MOE, 8, "expert_parallel 8 does not divide data_parallel × model_parallel 4"),
    ],
)
def test_expert_parallelism_that_does_not_divide_is_reported(model: dict[str, Any], expert: int, words: str) -> None:
    layout = ParallelLayout(world_size=4, data_parallel=2, tensor_parallel=2, expert_parallel=expert)
    assert any(words in problem for problem in find_layout_problems(model, layout, 4096))


def test_experts_with_tensor_parallelism_need_sequence_parallelism() -> None:
    layout = ParallelLayout(world_size=4, data_parallel=2, tensor_parallel=2, expert_parallel=4)
    assert find_layout_problems(MOE, layout, 4096) == []
    assert find_switch_problems(MOE, layout, 4096, sequence_parallel=True) == []
    (problem,) = find_switch_problems(MOE, layout, 4096, sequence_parallel=False)
    assert "use_seq_parallel" in problem


def test_experts_are_split_over_data_and_tensor_parallel_ranks(make_case: MakeCase) -> None:
    parts = {part.name: part for part in slice_parameters(make_moe(make_case, (2, 2, 1, 1), 2), 0)}
    first = parts["decoder.layers.0.mlp.experts.weight1"]
    # 16 experts × 1024 rows; half of them on each rank, whose optimizer states are split over the other two ranks.
    assert (first.shape, first.tensor_shape, first.stored_shape) == ((16384, 1024), (8192, 1024), (4096, 1024))
    assert first.is_expert
    router = parts["decoder.layers.0.mlp.router.weight"]
    assert router.tensor_shape == (16, 1024) and not router.is_expert


def test_memory_of_a_layer_follows_from_its_tokens(make_case: MakeCase) -> None:
    one, two = (
        count_layer_bytes(make_case((1, 1, 1, 1), model={**MOE, "num_experts_per_tok": number})) for number in (1, 2)
    )
    # Inputs and outputs (1024), gate and up (512) of one more expert per token, in bfloat16.
    assert two - one == 4096 * (2 * 1024 + 2 * 512) * 2


def test_time_of_the_exchange_between_experts(make_case: MakeCase) -> None:
    times = [
        estimate_step(make_moe(make_case, (8, 1, 1, 1), expert), MACHINE, MACHINE.efficiency) for expert in (1, 2, 8)
    ]
    exchanged = [time.tensor_exchange_s for time in times]
    assert exchanged[0] == 0 < exchanged[1]
    assert exchanged[2] / exchanged[1] == pytest.approx((7 / 8) / (1 / 2))
    # All experts are on all ranks, so that nothing is replicated.
    assert times[2].data_exchange_s < times[0].data_exchange_s


def test_the_search_lists_sizes_of_expert_parallelism_for_mixtures_only(make_case: MakeCase) -> None:
    def list_sizes(case: TrainingCase) -> set[int]:
        return {found.layout.expert_parallel for found in list_layouts(case, 8, 8)}

    assert list_sizes(make_case((8, 1, 1, 1), model=MOE)) == {1, 2, 4, 8}
    assert list_sizes(make_case((8, 1, 1, 1))) == {1}
