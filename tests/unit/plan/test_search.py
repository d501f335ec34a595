"""The search of layouts: legal, fitting, nothing faster missed among those it lists, and recomputation by stage."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from ascend_cpt.plan.case import GIGABYTE, TrainingCase
from ascend_cpt.plan.checkpoints import plan_checkpoints
from ascend_cpt.plan.estimate import Estimate, Limits, estimate, needed_bytes
from ascend_cpt.plan.machines import MACHINES
from ascend_cpt.plan.memory import estimate_memory
from ascend_cpt.plan.search.candidates import (
    count_useful_chunks,
    list_layouts,
    list_stage_parts,
    list_switches,
    make_offset,
)
from ascend_cpt.plan.search.clusters import find_cheapest, find_smallest, find_within
from ascend_cpt.plan.search.search import bound_speed, estimate_as, find_fastest, reduce_chunks
from ascend_cpt.plan.search.stages import StageSolver
from ascend_cpt.plan.search.table import describe_by_stage, describe_switches, render_table
from ascend_cpt.plan.slices import count_slices, slice_parameters
from ascend_cpt.plan.speed.throughput import estimate_step

MakeCase = Callable[..., TrainingCase]
MACHINE = MACHINES["910B"]
LONG: dict[str, Any] = {"model": {"vocab_size": 131072}, "seq_length": 8192}
"""The logits dominate the last stage's peak."""
TIGHT = Limits(device_bytes=64 * GIGABYTE, pool_bytes=int(5.5 * GIGABYTE))
ROOMY = Limits(device_bytes=64 * GIGABYTE, pool_bytes=60 * GIGABYTE)


def accept(case: TrainingCase) -> bool:
    return True


def plan_of(case: TrainingCase, limits: Limits = TIGHT) -> Estimate:
    checkpoints = plan_checkpoints(10**9, 4, num_steps=10, save_every_steps=None, keep_last=1)
    return estimate(case, MACHINE, limits, total_tokens=10**12, checkpoints=checkpoints)


def test_found_cases_fit_are_legal_and_sorted(make_case: MakeCase) -> None:
    case = make_case((8, 1, 1, 1), num_micro_batches=4)
    found = find_fastest(case, MACHINE, TIGHT, world_size=8)
    plans = [plan_of(other) for other in found]
    speeds = [plan.time.tokens_per_s for plan in plans]
    assert speeds == sorted(speeds, reverse=True) and len(speeds) == 10
    for plan in plans:
        assert plan.fits and plan.case.tokens_per_step == case.tokens_per_step
        assert plan.case.layout.world_size == 8 and plan.case.interleave == 1
        assert sum(plan.case.layers_per_stage) == 8
    assert len({(plan.case.layout, plan.case.micro_batch_size) for plan in plans}) == 10


@pytest.mark.parametrize(("limits", "is_chunked"), [(TIGHT, True), (ROOMY, False)])
def test_pruning_loses_nothing(make_case: MakeCase, limits: Limits, is_chunked: bool) -> None:
    case = make_case((8, 1, 1, 1), num_micro_batches=2)
    best = find_fastest(case, MACHINE, limits, world_size=8, max_layouts=1)[0]
    speeds = []
    for layout in list_layouts(case, 8, 8):
        for switched, chunks in product(list_switches(layout, 8), (1, 4, 32)):
            candidate = dataclasses.replace(switched, loss_chunks=chunks)
            solved = StageSolver(case=candidate, machine=MACHINE, limits=limits).solve()
            if solved is not None:
                speeds.append(solved[1].tokens_per_s)
                assert solved[1].tokens_per_s <= bound_speed(layout, MACHINE) * (1 + 1e-9)
    assert len(speeds) > 50
    assert estimate_step(best, MACHINE, MACHINE.efficiency).tokens_per_s == pytest.approx(max(speeds))
    assert (best.loss_chunks > 1) == is_chunked


def test_a_chunked_loss_has_the_fewest_parts_that_need_little_memory(make_case: MakeCase) -> None:
    found = find_fastest(make_case((8, 1, 1, 1), num_micro_batches=2, **LONG), MACHINE, TIGHT, world_size=8)
    chunked = [case for case in found if case.loss_chunks > 2]
    assert chunked
    for case in chunked:
        own, fewer, most = (
            needed_bytes(estimate_memory(dataclasses.replace(case, loss_chunks=chunks))[-1])
            for chunks in (case.loss_chunks, case.loss_chunks // 2, count_useful_chunks(case))
        )
        worth_it = most + TIGHT.usable_bytes // 100
        assert own <= min(worth_it, TIGHT.usable_bytes) < fewer


def test_parts_that_save_little_memory_are_joined(make_case: MakeCase) -> None:
    case = make_case((8, 1, 1, 1), seq_length=8192, loss_chunks=16)
    needed = {n: needed_bytes(estimate_memory(dataclasses.replace(case, loss_chunks=n))[0]) for n in (4, 8, 16)}
    assert needed[16] * 1.01 < needed[8] < needed[4] < ROOMY.usable_bytes
    assert needed[4] - needed[16] < ROOMY.usable_bytes // 100
    assert reduce_chunks(case, ROOMY).loss_chunks == 4
    assert reduce_chunks(case, dataclasses.replace(ROOMY, pool_bytes=needed[16] + 1)).loss_chunks == 16


def test_the_loss_stays_whole_if_the_run_cannot_chunk_it(make_case: MakeCase) -> None:
    case = make_case((8, 1, 1, 1), num_micro_batches=2, can_chunk_loss=False, loss_chunks=8, **LONG)
    found = find_fastest(case, MACHINE, TIGHT, world_size=8)
    assert found and {other.loss_chunks for other in found} == {1}


@pytest.mark.parametrize(("seq_length", "context", "chunks"), [(4096, 1, 8), (4096 * 3, 1, 32), (96, 1, 1),
                                                                (3 * 1024, 2, 4), (2**17, 1, 32)])  # fmt: skip
def test_parts_divide_the_rows_of_a_device(make_case: MakeCase, seq_length: int, context: int, chunks: int) -> None:
    case = make_case((1, 1, 1, context), seq_length=seq_length)
    assert count_useful_chunks(case) == chunks
    assert seq_length // context % chunks == 0


def test_as_few_layers_are_recomputed_as_memory_requires(make_case: MakeCase) -> None:
    case = make_case((1, 1, 4, 1), num_micro_batches=8, recompute=False, model={"num_hidden_layers": 32})
    limits = dataclasses.replace(TIGHT, pool_bytes=9 * GIGABYTE)
    solved = StageSolver(case=case, machine=MACHINE, limits=limits).solve()
    assert solved is not None
    found = solved[0]
    assert any(found.recomputed_layers)
    for stage, count in enumerate(found.recomputed_layers):
        assert needed_bytes(estimate_memory(found)[stage]) <= limits.usable_bytes
        if count:
            fewer = list(found.recomputed_layers)
            fewer[stage] -= 1
            memory = estimate_memory(dataclasses.replace(found, recomputed_layers=tuple(fewer)))[stage]
            assert needed_bytes(memory) > limits.usable_bytes
    # The first stage keeps most micro batches, the last one has the loss and so fewer layers.
    assert found.layers_per_stage[-1] < max(found.layers_per_stage)


def test_layers_move_away_from_the_slowest_stage(make_case: MakeCase) -> None:
    case = make_case((1, 1, 4, 1), num_micro_batches=8, recompute=False, model={"num_hidden_layers": 32})
    solved = StageSolver(case=case, machine=MACHINE, limits=ROOMY).solve()
    assert solved is not None
    assert solved[1].step_s < estimate_step(case, MACHINE, MACHINE.efficiency).step_s
    assert solved[1].step_s == pytest.approx(estimate_step(solved[0], MACHINE, MACHINE.efficiency).step_s)


@pytest.mark.parametrize("layout", [(2, 2, 2, 1), (8, 1, 1, 1), (1, 2, 4, 1)])
def test_counted_slices_are_those_of_every_parameter(make_case: MakeCase, layout: tuple[int, int, int, int]) -> None:
    case = make_case(layout, model={"tie_word_embeddings": True})
    for stage in range(case.num_stages):
        whole = [part.num_stored_elements for part in slice_parameters(case, stage)]
        counted = [part.num_stored_elements for part, number in count_slices(case, stage) for _ in range(number)]
        assert sorted(whole) == sorted(counted)


def test_search_over_nodes(make_case: MakeCase) -> None:
    case = make_case((8, 1, 1, 1), num_micro_batches=8)
    # 2 GB: too small for one node.
    small = dataclasses.replace(TIGHT, pool_bytes=int(1.45 * GIGABYTE))
    found = find_smallest(plan_of(case, small), accept, more_than=0)
    assert found is not None and found > 1
    plan = plan_of(case)
    cheapest = find_cheapest(plan, accept, max_nodes=2, days=None)
    costs = [other.case.layout.world_size / other.time.tokens_per_s for other in cheapest]
    assert costs == sorted(costs) and len(costs) > 1
    by_nodes = sorted(cheapest, key=lambda other: other.case.layout.world_size)
    assert by_nodes[0].days is not None and by_nodes[1].days is not None
    deadline = (by_nodes[0].days + by_nodes[1].days) / 2
    within = find_within(plan, accept, max_nodes=2, days=deadline)
    assert within and {other.case.layout.world_size for other in within} == {16}
    assert all(other.days is not None and other.days <= deadline for other in within)
    assert not find_within(plan, accept, max_nodes=1, days=deadline)


def test_refused_cases_are_not_found(make_case: MakeCase) -> None:
    case = make_case((8, 1, 1, 1), num_micro_batches=4)
    found = find_fastest(case, MACHINE, TIGHT, world_size=8, accepts=lambda other: other.layout.pipeline_parallel == 1)
    assert found and all(other.layout.pipeline_parallel == 1 for other in found)


def test_table_starts_with_the_given_layout_and_shows_gains(make_case: MakeCase) -> None:
    plan = plan_of(make_case((2, 4, 1, 1), num_micro_batches=16))
    assert plan.fits
    best = estimate_as(plan, find_fastest(plan.case, MACHINE, TIGHT, world_size=8, max_layouts=1)[0])
    lines = render_table(plan, [best]).splitlines()
    gain = best.time.tokens_per_s / plan.time.tokens_per_s - 1
    assert lines[1].split()[:2] == ["0", "given"] and f"{gain:+.0%}" in lines[2]
    assert describe_by_stage([20, 20, 19, 21]) == "2×20,19,21"


@pytest.mark.parametrize(("num_layers", "num_stages", "offset"), [(8, 4, [0, 0, 0, 0]), (10, 4, [0, 1, 1, 0]),
                                                                   (7, 4, [1, 1, 1, 0]), (5, 2, [1, 0])])  # fmt: skip
def test_remaining_layers_go_to_the_middle_stages(num_layers: int, num_stages: int, offset: list[int]) -> None:
    assert make_offset(num_layers, num_stages) == offset


def test_interleaved_stages_are_searched_only_if_asked(make_case: MakeCase) -> None:
    case = make_case((1, 1, 4, 1), num_micro_batches=4, model={"num_hidden_layers": 16})
    plain = find_fastest(case, MACHINE, ROOMY, world_size=4)
    case = dataclasses.replace(case, can_interleave=True)
    found = find_fastest(case, MACHINE, ROOMY, world_size=4)
    assert {other.interleave for other in plain} == {1}
    interleaved = [other for other in found if other.interleave == 2]
    assert interleaved and all(other.layout.pipeline_parallel > 1 for other in interleaved)
    for other in found:
        assert other.num_micro_batches % other.num_stages == 0 or other.interleave == 1
        speed = estimate_step(other, MACHINE, MACHINE.efficiency).tokens_per_s
        for layout in list_layouts(case, 4, 8):
            if (layout.layout, layout.micro_batch_size) == (other.layout, other.micro_batch_size):
                assert speed <= bound_speed(layout, MACHINE, max(list_stage_parts(layout))) * (1 + 1e-9)
    assert "interleave 2" in describe_switches(interleaved[0])


@pytest.mark.parametrize("seed", range(6))
def test_nothing_slower_than_the_given_layout_is_ranked(make_case: MakeCase, seed: int) -> None:
    generator = random.Random(seed)
    layout = generator.choice([(8, 1, 1, 1), (4, 2, 1, 1), (2, 2, 2, 1), (1, 2, 4, 1), (1, 1, 8, 1)])
    limits = dataclasses.replace(ROOMY, pool_bytes=int(generator.choice([5.5, 7, 9, 20]) * GIGABYTE))
    case = make_case(layout, num_micro_batches=8, recompute=generator.random() < 0.5)
    found = find_fastest(dataclasses.replace(case, can_interleave=True), MACHINE, limits, world_size=8, max_layouts=1)
    given = estimate_as(plan_of(case, limits), case)
    if given.fits:
        assert estimate_step(found[0], MACHINE, MACHINE.efficiency).tokens_per_s >= given.time.tokens_per_s * (1 - 1e-9)
    for other in found:
        assert all(needed_bytes(stage) <= limits.usable_bytes for stage in estimate_memory(other))
