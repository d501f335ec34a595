"""Spike limits and step verdicts, also in a resumed run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.config.monitoring_schema import GuardConfig, SpikeConfig
from ascend_cpt.monitor.guard import GRAD_NORM_SPIKE, LOSS_SPIKE, OVERFLOW, SpikeWindow, StepJudge, StepVerdict

SPIKES = GuardConfig(
    loss_spike=SpikeConfig(sigmas=3.0, window_steps=8),
    grad_norm_spike=SpikeConfig(sigmas=3.0, window_steps=8),
    max_skips_in_a_row=3,
)


def judge(judge: StepJudge, step: int, loss: float, grad_norm: float | None = 1.0, **changes: Any) -> StepVerdict:
    """Judge a step like the device, which skips losses above the limit and non-finite values."""
    is_skipped = not (loss <= judge.loss_limit and math.isfinite(loss)) or (
        grad_norm is not None and not math.isfinite(grad_norm)
    )
    return judge.judge(
        step=step, loss=loss, grad_norm=grad_norm, **{"is_skipped": is_skipped, "scaled": False, **changes}
    )


def test_limit_is_mean_plus_sigmas_standard_deviations() -> None:
    window = SpikeWindow(SpikeConfig(sigmas=2.0, window_steps=4))
    window.add(100.0)
    assert window.limit == math.inf
    for value in (1.0, 2.0, math.nan, 3.0):
        window.add(value)
    assert window.limit == float(np.float32(2.0 + 2.0 * 1.0))


def test_spikes_are_skipped_and_counted() -> None:
    steps = StepJudge(SPIKES)
    for step in range(1, 9):
        assert judge(steps, step, 2.0 + step % 2 / 10) == StepVerdict()
    assert judge(steps, 9, 5.0) == StepVerdict(skipped=LOSS_SPIKE)
    assert judge(steps, 10, 2.0, grad_norm=1.5) == StepVerdict(skipped=GRAD_NORM_SPIKE)
    assert steps.num_skipped == 2


def test_skips_in_a_row_stop_the_run() -> None:
    steps = StepJudge(SPIKES)
    for step in range(1, 9):
        judge(steps, step, 2.0)
    assert judge(steps, 9, 3.0, grad_norm=9.0).skipped == LOSS_SPIKE
    judge(steps, 10, 20.0)
    verdict = judge(steps, 11, 200.0)
    assert verdict.stop == "3 consecutive steps were skipped; the last reason: loss spike"


@pytest.mark.parametrize(
    ("loss", "grad_norm", "is_skipped", "stop"),
    [
        (math.nan, math.nan, True, "the loss is nan"),
        (math.inf, 1.0, True, "the loss is inf"),
        (2.0, math.inf, True, "the gradient norm is inf"),
        (2.0, None, True, "a gradient is not finite"),
        (2.0, 1.0, False, ""),
    ],
)
def test_non_finite_values_stop_the_run(loss: float, grad_norm: float | None, is_skipped: bool, stop: str) -> None:
    verdict = StepJudge(GuardConfig()).judge(
        step=1, loss=loss, grad_norm=grad_norm, is_skipped=is_skipped, scaled=False
    )
    assert verdict.stop == stop and verdict.skipped == (OVERFLOW if is_skipped else "")


def test_overflow_with_dynamic_loss_scale_does_not_stop() -> None:
    steps = StepJudge(GuardConfig())
    assert judge(steps, 1, 2.0, grad_norm=math.inf, scaled=True) == StepVerdict(skipped=OVERFLOW)
    assert judge(steps, 2, math.nan, grad_norm=math.nan, scaled=True).stop == "the loss is nan"


def test_bad_steps_in_a_row_stop_even_without_stop_on_non_finite() -> None:
    steps = StepJudge(GuardConfig(stop_on_non_finite=False, max_skips_in_a_row=2))
    assert judge(steps, 1, math.nan) == StepVerdict(skipped=OVERFLOW)
    assert judge(steps, 2, math.nan).stop.startswith("2 consecutive steps")


def test_new_phase_clears_the_window() -> None:
    steps = StepJudge(SPIKES, first_steps=[0, 8])
    for step in range(1, 8):
        judge(steps, step, 2.0)
    assert steps.loss_limit == 2.0, "step 8 belongs to the first phase"
    judge(steps, 8, 2.0)
    assert steps.loss_limit == math.inf and judge(steps, 9, 50.0) == StepVerdict()


@given(
    losses=st.lists(st.floats(0, 20) | st.just(math.nan), min_size=1, max_size=60),
    stop=st.integers(0, 60),
    data=st.data(),
)
def test_resumed_run_has_the_same_verdicts(losses: list[float], stop: int, data: st.DataObject) -> None:
    config = GuardConfig(stop_on_non_finite=False, loss_spike=SPIKES.loss_spike, grad_norm_spike=SPIKES.grad_norm_spike)
    norms = data.draw(st.lists(st.floats(0, 5), min_size=len(losses), max_size=len(losses)))
    first_steps = [0, 20]
    whole, before, after = (StepJudge(config, first_steps) for _ in range(3))
    records, verdicts = [], []
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        verdict = judge(whole, step, loss, norm)
        verdicts.append((verdict, whole.loss_limit, whole.grad_norm_limit))
        records.append({"step": step, "loss": str(loss), "grad_norm": norm, "skipped": verdict.skipped})
    stop = min(stop, len(losses))
    for step in range(1, stop + 1):
        judge(before, step, losses[step - 1], norms[step - 1])
    kept = records[:stop]
    after.restore(kept[-after.window_steps :], sum(bool(record["skipped"]) for record in kept))
    for step in range(stop + 1, len(losses) + 1):
        verdict = judge(after, step, losses[step - 1], norms[step - 1])
        assert (verdict, after.loss_limit, after.grad_norm_limit) == verdicts[step - 1]
    assert after.num_skipped == whole.num_skipped
