"""Learning rates at the steps that matter."""

from __future__ import annotations

import numpy as np
import pytest

from ascend_cpt.recipe.schedule import Schedule, learning_rate_at, tabulate


def make(kind: str = "cosine", *, warmup: int = 10, total: int = 110, final: float = 1e-5) -> Schedule:
    return Schedule(kind=kind, peak_lr=1e-3, final_lr=final, warmup_steps=warmup, total_steps=total)


def test_warmup_rises_to_the_peak_and_never_is_zero() -> None:
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


@pytest.mark.parametrize(
    "change", [{"kind": "wavy"}, {"peak_lr": 0.0}, {"peak_lr": float("nan")}, {"final_lr": 1.0}, {"warmup_steps": 110}]
)
def test_impossible_schedules(change: dict[str, object]) -> None:
    values = {"kind": "cosine", "peak_lr": 1e-3, "final_lr": 0.0, "warmup_steps": 0, "total_steps": 110, **change}
    with pytest.raises(ValueError, match=r".+"):
        Schedule(**values)  # type: ignore[arg-type]
