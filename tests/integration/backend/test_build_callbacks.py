"""Missing records of a resumed run, and the planned tokens in `run.json`."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ascend_cpt.backend.training.build_callbacks import _check_missing_records, _keeps_records, _plan_tokens
from ascend_cpt.config.monitoring_schema import GuardConfig, SpikeConfig, ValidationConfig, ValidationSetConfig
from ascend_cpt.errors import CheckpointError
from ascend_cpt.monitor.sinks import SinkGroup
from ascend_cpt.recipe.budget import Budget
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
def test_missing_records_are_an_error_if_ranks_must_agree(
    guards: GuardConfig, validation: ValidationConfig | None
) -> None:
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: has no records up to step 7, .* from another node"):
        _check_missing_records(make_plan(2, guards, validation), 7, SinkGroup([], None))


@pytest.mark.parametrize(
    ("world_size", "guards", "validation"), [(1, SPIKES, STOPS), (2, GuardConfig(), WARNS), (2, GuardConfig(), None)]
)
def test_missing_records_are_a_warning_otherwise(
    world_size: int, guards: GuardConfig, validation: ValidationConfig | None
) -> None:
    console = io.StringIO()
    _check_missing_records(make_plan(world_size, guards, validation), 7, SinkGroup([], console))
    assert "guards and alarms restart without history" in console.getvalue()


def test_one_rank_of_a_node_writes_its_records() -> None:
    """16 ranks on two nodes with four pipeline stages: rank 12 reports, so rank 8 must not write the same file."""
    own = SimpleNamespace(cpt=SimpleNamespace(storage=SimpleNamespace(shared=False)))
    shared = SimpleNamespace(cpt=SimpleNamespace(storage=SimpleNamespace(shared=True)))
    for config, expected in ((own, [True, False]), (shared, [False, False])):
        run: Any = SimpleNamespace(config=config, report_rank=12)
        assert [_keeps_records(run, rank, 8) for rank in (0, 8)] == expected


def test_planned_tokens_are_exact_for_blends_and_expected_values_for_shuffles() -> None:
    shares = {"web": Fraction(2, 3), "qa": Fraction(1, 3)}
    blend = Phase(name="blend", first_step=0, stop_step=5, shares=shares)
    shuffle = Phase(name="train", first_step=0, stop_step=5)
    for phase, tokens in ((blend, {"web": 1000, "qa": 500}), (shuffle, {"web": 1100, "qa": 400})):
        order = SampleOrder(num_rows={"web": 30, "qa": 10}, phases=(phase,), global_batch_size=3, seed=1)
        plan = SimpleNamespace(
            budget=Budget(
                seq_length=100, global_batch_size=3, micro_batch_size=3, num_accumulation_steps=1, total_steps=5
            ),
            sources=[SimpleNamespace(name=name, num_rows=rows) for name, rows in order.num_rows.items()],
            count_source_rows=lambda first, stop, order=order: order.count(first * 3, stop * 3),
        )
        assert _plan_tokens(plan, phase) == tokens
