"""Time, suggestions, reports and disk; and the published speeds."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.errors import ConfigError
from ascend_cpt.model.flops import count_training_flops_per_token
from ascend_cpt.plan.case import GIGABYTE, TrainingCase
from ascend_cpt.plan.checkpoints import plan_checkpoints
from ascend_cpt.plan.estimate import Estimate, Limits, estimate
from ascend_cpt.plan.machines import MACHINES, find_machine
from ascend_cpt.plan.picture import draw_plan
from ascend_cpt.plan.report import render, to_record
from ascend_cpt.plan.speed.figures import MINDFORMERS, Figure, load_figures

MakeCase = Callable[..., TrainingCase]
FIGURES = load_figures(Path(__file__).resolve().parents[3] / "benchmarks/plan_figures.yaml")
LIMITS = Limits(device_bytes=64 * GIGABYTE, pool_bytes=58 * GIGABYTE)


def plan_of(case: TrainingCase, limits: Limits = LIMITS) -> Estimate:
    checkpoints = plan_checkpoints(
        case.num_parameters,
        case.param_bytes,
        num_steps=10**9 // case.tokens_per_step,
        save_every_steps=None,
        keep_last=1,
    )
    return estimate(case, MACHINES["910B"], limits, total_tokens=10**9, checkpoints=checkpoints)


@pytest.mark.parametrize(
    "figure", [f for f in FIGURES if f.framework == MINDFORMERS], ids=lambda f: f"{f.name}-{f.device}"
)
def test_published_runs_on_64_gb_fit(figure: Figure) -> None:
    """Upstream states that these ran. Only the peak counts: the reserve is this program's caution."""
    plan = plan_of(figure.case)
    assert max(stage.peak_bytes for stage in plan.stages) < 64 * GIGABYTE


def test_plan_and_run_use_the_same_flops(make_case: MakeCase) -> None:
    case = make_case()
    time = plan_of(case).time
    assert time.model_flops == count_training_flops_per_token(case.model, case.seq_length) * case.tokens_per_step


def test_parts_add_up_to_the_step_time(make_case: MakeCase) -> None:
    time = plan_of(make_case((2, 2, 4, 1), num_micro_batches=8)).time
    parts = (
        time.compute_s,
        time.fixed_s,
        time.tensor_exchange_s,
        time.pipeline_bubble_s,
        time.pipeline_exchange_s,
        time.data_exchange_s,
        time.update_s,
    )
    assert sum(parts) == pytest.approx(time.step_s) and min(parts) > 0
    # The other three stages; the slowest is the last one, which has the loss.
    assert 0.3 < time.pipeline_bubble_s / ((time.compute_s + time.fixed_s + time.tensor_exchange_s) * 3 / 8) < 1
    assert time.count_days(time.tokens) == pytest.approx(time.step_s / 86400)


def test_recomputation_takes_time_and_does_not_count_as_flops(make_case: MakeCase) -> None:
    kept, recomputed = plan_of(make_case(recompute=False)).time, plan_of(make_case()).time
    assert recomputed.step_s > kept.step_s
    assert recomputed.model_flops == kept.model_flops


def test_unknown_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of 910B, 910B-pod"):
        find_machine("H100")


@pytest.mark.parametrize(
    ("num_steps", "save_every_steps", "keep_last", "keep_every_steps", "num_written", "num_held"),
    [
        (100, 10, 2, None, 10, 3),
        (101, 10, 2, None, 11, 3),
        (100, 10, 0, None, 10, 10),
        (100, None, 3, None, 1, 1),
        (100, 50, 3, None, 2, 2),
        (None, 10, 2, 20, 3, 3),
        (100, 10, 2, 40, 10, 5),
        (100, 10, 2, 15, 10, 6),
        (100, 10, 2, 10, 10, 10),
    ],
)
def test_checkpoints_and_disk(
    num_steps: int | None,
    save_every_steps: int | None,
    keep_last: int,
    keep_every_steps: int | None,
    num_written: int,
    num_held: int,
) -> None:
    checkpoints = plan_checkpoints(
        1000,
        4,
        num_steps=num_steps,
        save_every_steps=save_every_steps,
        keep_last=keep_last,
        keep_every_steps=keep_every_steps,
    )
    assert checkpoints.num_bytes == 12 * 1000
    assert (checkpoints.num_written, checkpoints.num_held) == (num_written, num_held)
    assert checkpoints.disk_bytes == num_held * checkpoints.num_bytes


def test_best_checkpoints_and_an_export_take_disk_space() -> None:
    checkpoints = plan_checkpoints(
        1000, 4, num_steps=100, save_every_steps=10, keep_last=2, num_best=3, export_bytes=4000
    )
    assert checkpoints.num_held == 2 + 1 + 3 and checkpoints.export_bytes == 4000
    assert checkpoints.disk_bytes == 6 * checkpoints.num_bytes + 4000
    unknown = plan_checkpoints(1000, 4, num_steps=None, save_every_steps=10, keep_last=2, num_best=3)
    assert unknown.num_held == 2 + 1 + 3


def test_report_record_and_picture(make_case: MakeCase, tmp_path: Path) -> None:
    plan = plan_of(make_case())
    text = render(plan)
    wanted = (
        "data 2 × tensor 2 × pipeline 2",
        "stage 1",
        "loss",
        "MFU",
        "fixed time of layers and step",
        "error     ±",
    )
    for words in (*wanted, "days", "fits      yes"):
        assert words in text
    record = json.loads(json.dumps(to_record(plan)))
    assert record["fits"] and record["stages"][1]["peak_bytes"] == plan.stages[1].peak_bytes
    draw_plan(plan, tmp_path / "plan.png", title="x")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.png"]
    small = plan_of(make_case(), Limits(device_bytes=5 * GIGABYTE, pool_bytes=58 * GIGABYTE))
    assert not small.fits and "fits      NO: stage 1" in render(small)
    assert re.search(r"stage 1 needs [\d.]+ GB, but only [\d.]+ GB are usable; peak in `loss`; list", render(small))


@pytest.mark.parametrize(("keep_last", "num_held"), [(2, 3), (0, 10)])
def test_disk_space_in_the_report_is_that_of_the_printed_number(
    make_case: MakeCase, keep_last: int, num_held: int
) -> None:
    checkpoints = plan_checkpoints(GIGABYTE, 4, num_steps=100, save_every_steps=10, keep_last=keep_last)
    plan = dataclasses.replace(plan_of(make_case()), checkpoints=checkpoints)
    line = f"disk      12.0 GB per checkpoint, at most {num_held} on disk at once: {12 * num_held}.0 GB"
    assert line in render(plan).splitlines()
