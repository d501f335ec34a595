"""The time model: published speeds, its parts, and the fit."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.plan.case import TrainingCase
from ascend_cpt.plan.machines import EFFICIENCIES, MACHINES, PUBLISHED_BAND, find_machine
from ascend_cpt.plan.speed.figures import Figure, load_figures
from ascend_cpt.plan.speed.fit import Prior, Speed, fit, predict
from ascend_cpt.plan.speed.throughput import StepTime, estimate_step

MakeCase = Callable[..., TrainingCase]
FIGURES = load_figures(Path(__file__).resolve().parents[3] / "benchmarks/plan_figures.yaml")
MACHINE = MACHINES["910B"]


def to_speed(figure: Figure) -> Speed:
    return Speed(case=figure.case, machine=find_machine(figure.device), tokens_per_device_s=figure.tokens_per_device_s)


def find_errors(*, calibrates: bool) -> list[float]:
    return [
        abs(predict(to_speed(figure), EFFICIENCIES[figure.framework]) / figure.tokens_per_device_s - 1)
        for figure in FIGURES
        if figure.calibrates == calibrates
    ]


def time_of(case: TrainingCase) -> StepTime:
    return estimate_step(case, MACHINE, MACHINE.efficiency)


def test_a_third_of_the_figures_is_held_out_by_family() -> None:
    fitted = {figure.family for figure in FIGURES if figure.calibrates}
    held_out = {figure.family for figure in FIGURES if not figure.calibrates}
    assert not fitted & held_out
    assert len(find_errors(calibrates=False)) >= len(FIGURES) / 3


def test_the_printed_error_band_is_that_of_the_held_out_figures() -> None:
    errors = sorted(find_errors(calibrates=False))
    assert len(errors) == PUBLISHED_BAND.num_figures
    assert PUBLISHED_BAND.median == pytest.approx(statistics.median(errors), abs=0.005)
    within = sum(error <= PUBLISHED_BAND.high + 0.005 for error in errors)
    assert within / len(errors) >= 0.9
    assert statistics.median(find_errors(calibrates=True)) < 0.08


def test_fixed_time_is_separate_and_matters_for_small_models(make_case: MakeCase) -> None:
    small = time_of(make_case((8, 1, 1, 1), seq_length=512))
    large = time_of(make_case((8, 1, 1, 1), seq_length=16384))
    assert small.fixed_s == pytest.approx(large.fixed_s)
    assert small.fixed_s / small.step_s > 0.5 > large.fixed_s / large.step_s


def test_interleaving_divides_the_bubble_and_keeps_more_in_flight(make_case: MakeCase) -> None:
    from ascend_cpt.plan.activations import count_saved_bytes

    plain = make_case((1, 2, 4, 1), num_micro_batches=16)
    interleaved = dataclasses.replace(plain, interleave=2)
    assert time_of(interleaved).pipeline_bubble_s == pytest.approx(time_of(plain).pipeline_bubble_s / 2)
    assert count_saved_bytes(interleaved, 0) > count_saved_bytes(plain, 0)


def test_switches_cost_time(make_case: MakeCase) -> None:
    plain = make_case((4, 2, 1, 1), recompute=False)
    for name, part in (
        ("recomputes_selected", "compute_s"),
        ("shards_gradients", "data_exchange_s"),
        ("regathers_weights", "data_exchange_s"),
        ("swaps_optimizer", "update_s"),
    ):
        changed = time_of(dataclasses.replace(plain, **{name: True}))
        assert getattr(changed, part) > getattr(time_of(plain), part), name
        assert changed.step_s > time_of(plain).step_s


def test_a_loss_in_parts_computes_the_logits_again(make_case: MakeCase) -> None:
    whole, parts = (time_of(make_case((2, 2, 1, 1), loss_chunks=chunks)) for chunks in (1, 8))
    logits_flops = 2 * 1024 * 32000 / 2 * 4096 * 4  # hidden size × vocabulary / tensor parallel × tokens
    again_s = logits_flops / (MACHINE.peak_flops * MACHINE.efficiency.matmul)
    assert again_s < parts.compute_s - whole.compute_s < 3 * again_s
    assert time_of(make_case((2, 2, 1, 1), loss_chunks=16)).step_s == parts.step_s


def test_exchange_between_data_parallel_ranks_is_partly_hidden(make_case: MakeCase) -> None:
    case = make_case((8, 1, 1, 1))
    shown = estimate_step(case, MACHINE, dataclasses.replace(MACHINE.efficiency, data_hidden=1e-9))
    assert 0 < time_of(case).data_exchange_s < shown.data_exchange_s


def test_context_parallel_has_a_slowest_rank(make_case: MakeCase) -> None:
    whole = time_of(make_case((2, 1, 1, 1), recompute=False, seq_length=32768))
    split = time_of(make_case((1, 1, 1, 2), recompute=False, seq_length=32768))
    assert split.compute_s > whole.compute_s / 2


def test_fit_recovers_the_efficiencies_of_made_up_speeds() -> None:
    priors = {
        name: Prior(value=value, sigma=1.0 if name in ("matmul", "layer_s") else 0.0)
        for name, value in dataclasses.asdict(MACHINE.efficiency).items()
    }
    truth = dataclasses.replace(MACHINE.efficiency, matmul=0.6, layer_s=2e-3)
    speeds = [
        dataclasses.replace(to_speed(figure), tokens_per_device_s=predict(to_speed(figure), truth))
        for figure in FIGURES[:12]
    ]
    found = fit(speeds, priors)[""]
    assert found.matmul == pytest.approx(0.6, rel=0.02) and found.layer_s == pytest.approx(2e-3, rel=0.05)
    assert found.attention == MACHINE.efficiency.attention
