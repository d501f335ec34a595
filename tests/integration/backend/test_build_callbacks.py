"""What a rank knows of the past of its run, and what a report is told of the plan."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ascend_cpt.backend.training.build_callbacks import _accept_lost_records, _plan_tokens
from ascend_cpt.config.monitoring_schema import GuardConfig, SpikeConfig, ValidationConfig, ValidationSetConfig
from ascend_cpt.errors import CheckpointError
from ascend_cpt.monitor.sinks import SinkGroup
from ascend_cpt.recipe.phases import Phase, SampleOrder

SPIKES = GuardConfig(loss_spike=SpikeConfig())
STOPS = ValidationConfig(sets={"a": ValidationSetConfig(path="x", max_increase=0.1, on_increase="stop")})
WARNS = ValidationConfig(sets={"a": ValidationSetConfig(path="x", max_increase=0.1)})


def make_plan(world_size: int, guards: GuardConfig, validation: ValidationConfig | None) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(cpt=SimpleNamespace(guards=guards, validation=validation)),
        run_dir=Path("output/run"),
        layout=SimpleNamespace(world_size=world_size),
    )


@pytest.mark.parametrize(("guards", "validation"), [(SPIKES, None), (GuardConfig(), STOPS)])
def test_ranks_that_must_decide_the_same_do_not_go_on_without_their_records(
    guards: GuardConfig, validation: ValidationConfig | None
) -> None:
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: has no records up to step 7, .* from another node"):
        _accept_lost_records(make_plan(2, guards, validation), 7, SinkGroup([], None))


@pytest.mark.parametrize(
    ("world_size", "guards", "validation"), [(1, SPIKES, STOPS), (2, GuardConfig(), WARNS), (2, GuardConfig(), None)]
)
def test_otherwise_lost_records_are_a_warning(
    world_size: int, guards: GuardConfig, validation: ValidationConfig | None
) -> None:
    console = io.StringIO()
    _accept_lost_records(make_plan(world_size, guards, validation), 7, SinkGroup([], console))
    assert "guards and alarms start anew" in console.getvalue()


def test_planned_tokens_are_exact_for_blends_and_expected_for_a_shuffle() -> None:
    shares = {"web": Fraction(2, 3), "qa": Fraction(1, 3)}
    blend = Phase(name="blend", first_step=0, stop_step=5, shares=shares)
    shuffle = Phase(name="train", first_step=0, stop_step=5)
    for phase, tokens in ((blend, {"web": 1000, "qa": 500}), (shuffle, {"web": 1100, "qa": 400})):
        order = SampleOrder(num_rows={"web": 30, "qa": 10}, phases=(phase,), global_batch_size=3, seed=1)
        plan = SimpleNamespace(
            budget=SimpleNamespace(global_batch_size=3, seq_length=100),
            sources=[SimpleNamespace(name=name, num_rows=rows) for name, rows in order.num_rows.items()],
            count_source_rows=lambda first, stop, order=order: order.count(first * 3, stop * 3),
        )
        assert _plan_tokens(plan, phase) == tokens
