"""Learning-rate schedules."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.recipe.schedule import (
    KINDS,
    SHAPES,
    Schedule,
    build_schedule,
    find_lr_fraction,
    learning_rate_at,
    tabulate,
)


def make(kind: str = "cosine", *, warmup: int = 10, total: int = 110, final: float = 1e-5, **more: Any) -> Schedule:
    return build_schedule(kind, peak_lr=1e-3, final_lr=final, warmup_steps=warmup, total_steps=total, **more)


def test_warmup_ends_at_the_peak_and_is_never_zero() -> None:
    rates = tabulate(make())
    assert rates[0] == pytest.approx(1e-4) and rates[9] == pytest.approx(1e-3) and rates[10] == pytest.approx(1e-3)
    assert (np.diff(rates[:10]) > 0).all()


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_decay_ends_exactly_at_the_final_rate(kind: str) -> None:
    rates = tabulate(make(kind))
    assert rates[-1] == pytest.approx(1e-5)
    assert (np.diff(rates[10:]) <= 0).all()
    assert learning_rate_at(make(kind), 10**6) == pytest.approx(1e-5)


def test_middle_of_the_decay() -> None:
    assert learning_rate_at(make("linear", warmup=0, total=101, final=0.0), 50) == pytest.approx(5e-4)
    assert learning_rate_at(make("cosine", warmup=0, total=101, final=0.0), 50) == pytest.approx(5e-4)
    assert learning_rate_at(make("cosine", warmup=0, total=101, final=0.0), 25) == pytest.approx(
        1e-3 * (1 + 2**-0.5) / 2
    )


def test_constant_and_one_step() -> None:
    assert set(tabulate(make("constant", warmup=0)).tolist()) == {np.float32(1e-3).item()}
    assert tabulate(make(warmup=0, total=1)).shape == (1,)
    assert np.isfinite(tabulate(make(warmup=0, total=1))).all()


@pytest.mark.parametrize(("shape", "middle"), [("linear", 5.05e-4), ("cosine", 5.05e-4), ("sqrt", None)])
def test_wsd_is_constant_and_then_decays(shape: str, middle: float | None) -> None:
    rates = tabulate(make("wsd", decay_steps=21, decay_shape=shape))
    assert set(rates[9:89].tolist()) == {np.float32(1e-3).item()}
    assert rates[89] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-5)
    expected = 1e-5 + (1e-3 - 1e-5) * (1 - 0.5**0.5) if middle is None else middle
    assert rates[99] == pytest.approx(expected)


def test_exponential_decay_halves_evenly() -> None:
    rates = tabulate(make("wsd", warmup=0, total=15, final=1e-3 / 16, decay_steps=5, decay_shape="exponential"))
    assert rates[-5:].tolist() == pytest.approx([1e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5])


def test_infinite_cools_down_is_constant_and_decays() -> None:
    schedule = make("infinite", total=210, cooldown_steps=50, constant_lr=4e-4, decay_steps=20)
    assert [segment.name for segment in schedule.segments] == ["warmup", "cooldown", "stable", "decay"]
    rates = tabulate(schedule)
    assert rates[10] == pytest.approx(1e-3) and rates[59] == pytest.approx(4e-4)
    assert set(rates[60:190].tolist()) == {np.float32(4e-4).item()}
    assert rates[-1] == pytest.approx(1e-5)
    open_end = tabulate(make("infinite", total=210, cooldown_steps=50, constant_lr=4e-4))
    assert open_end[-1] == pytest.approx(4e-4)


def test_cycles_warm_up_again_from_the_floor() -> None:
    rates = tabulate(make(total=200, cycles=2))
    assert rates[99] == pytest.approx(1e-5)
    assert rates[100] == pytest.approx(1e-5 + (1e-3 - 1e-5) / 10)
    assert rates[109] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-5)


def test_step_at_a_fifth_of_the_peak() -> None:
    # Cosine 4.5e-5 → 4.5e-7: 0.01 + 0.99 (1 + cos πt) / 2 = 0.2 at t = 0.7113.
    schedule = build_schedule("cosine", peak_lr=4.5e-5, final_lr=4.5e-7, total_steps=100_000)
    step = find_lr_fraction(schedule, 0.2)
    assert step / 100_000 == pytest.approx(0.7113, abs=1e-4)
    assert learning_rate_at(schedule, step) <= 0.2 * 4.5e-5 < learning_rate_at(schedule, step - 1)


def test_fraction_that_is_never_reached() -> None:
    with pytest.raises(ValueError, match="does not decay to 0.2 of the peak; its lowest value is 0.5"):
        find_lr_fraction(make("linear", final=5e-4), 0.2)


@given(
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from(SHAPES),
    warmup=st.integers(0, 5),
    middle=st.integers(8, 60),
    decay=st.integers(0, 5),
    cycles=st.integers(1, 3),
)
def test_rates_are_within_bounds_and_records_round_trip(
    kind: str, shape: str, warmup: int, middle: int, decay: int, cycles: int
) -> None:
    schedule = build_schedule(
        kind,
        peak_lr=1e-3,
        final_lr=1e-5,
        total_steps=(warmup + middle + decay) * cycles,
        warmup_steps=warmup,
        decay_steps=decay,
        decay_shape=shape,
        cooldown_steps=2,
        constant_lr=1e-4,
        cycles=cycles,
    )
    rates = tabulate(schedule)
    assert rates.shape == (schedule.total_steps,) == ((warmup + middle + decay) * cycles,)
    assert np.isfinite(rates).all() and (rates > 0).all() and (rates <= np.float32(1e-3)).all()
    record = json.loads(json.dumps(schedule.to_record()))
    assert tabulate(Schedule.from_record(**record)).tolist() == rates.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "wavy"}, "kind 'wavy' is unknown"),
        ({"peak_lr": 0.0}, "peak_lr must be above 0"),
        ({"peak_lr": float("nan")}, "peak_lr must be above 0"),
        ({"final_lr": 1.0}, "final_lr must lie between"),
        ({"warmup_steps": 110}, "warmup of 110 steps does not fit"),
        ({"kind": "wsd", "decay_steps": 110}, "decay of 110 steps does not fit"),
        ({"kind": "wsd", "decay_steps": 9, "decay_shape": "wavy"}, "decay_shape 'wavy' is unknown"),
        ({"kind": "wsd", "decay_steps": 9, "decay_shape": "exponential"}, "never reaches 0"),
        ({"kind": "infinite", "cooldown_steps": 9}, "constant_lr must lie between"),
        ({"kind": "infinite", "cooldown_steps": 110, "constant_lr": 1e-4}, "cooldown of 110 steps does not fit"),
        ({"cycles": 30, "warmup_steps": 4}, "does not fit into 3 steps"),
    ],
)
def test_impossible_schedules(change: dict[str, Any], message: str) -> None:
    values = {"kind": "cosine", "peak_lr": 1e-3, "final_lr": 0.0, "warmup_steps": 0, "total_steps": 110, **change}
    with pytest.raises(ValueError, match=message):
        build_schedule(**values)
