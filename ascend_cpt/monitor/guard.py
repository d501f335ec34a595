"""Decides which steps must not update the weights: non-finite ones and spikes. The backend applies the decisions.

A step's limits depend only on earlier steps. The comparison can therefore run on the device before the optimizer, and
a resumed run has the same limits as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ascend_cpt.config.monitoring_schema import GuardConfig, SpikeConfig

OVERFLOW, LOSS_SPIKE, GRAD_NORM_SPIKE = "not finite", "loss spike", "gradient-norm spike"


class SpikeWindow:
    """A quantity's latest values and the limit computed from them: mean + sigmas × standard deviation.

    Spikes enter the window too, so that a lasting change of level does not cause steps to be skipped forever.
    """

    def __init__(self, config: SpikeConfig) -> None:
        self._sigmas = config.sigmas
        self._values: deque[float] = deque(maxlen=config.window_steps)
        self._needed = max(2, config.window_steps // 2)

    def add(self, value: float) -> None:
        """Add a step's value. A non-finite value takes a place in the window but is not used."""
        self._values.append(value)

    def clear(self) -> None:
        """Remove all values."""
        self._values.clear()

    @property
    def limit(self) -> float:
        """The largest non-spike value, rounded to float32, or infinity while the window has too few values."""
        values = np.array(self._values)
        values = values[np.isfinite(values)]
        if len(values) < self._needed:
            return math.inf
        return float(np.float32(values.mean() + self._sigmas * values.std(ddof=1)))


@dataclass(frozen=True, kw_only=True)
class StepVerdict:
    """`skipped` says why the update was skipped and `stop` why the run must stop; either may be empty."""

    skipped: str = ""
    stop: str = ""


class StepJudge:
    """Judges steps in order. The windows are cleared at `first_steps`, the steps (from 0) at which phases begin."""

    def __init__(self, config: GuardConfig, first_steps: Collection[int] = ()) -> None:
        self._config, self._first_steps = config, frozenset(first_steps)
        self._loss = SpikeWindow(config.loss_spike) if config.loss_spike else None
        self._grad_norm = SpikeWindow(config.grad_norm_spike) if config.grad_norm_spike else None
        self._num_in_a_row = 0
        self.num_skipped = 0

    @property
    def window_steps(self) -> int:
        """Number of past steps that the limits and counts depend on."""
        spikes = (self._config.loss_spike, self._config.grad_norm_spike)
        return max([self._config.max_skips_in_a_row, *(spike.window_steps for spike in spikes if spike)])

    @property
    def loss_limit(self) -> float:
        """The loss above which the next update is skipped."""
        return self._loss.limit if self._loss else math.inf

    @property
    def grad_norm_limit(self) -> float:
        """The gradient norm above which the next update is skipped."""
        return self._grad_norm.limit if self._grad_norm else math.inf

    def restore(self, records: Iterable[Mapping[str, Any]], num_skipped: int) -> None:
        """Restore a resumed run's last recorded steps and its total number of skipped steps."""
        for record in records:
            grad_norm = record.get("grad_norm")
            loss = float(record["loss"]) + float(record.get("extra_loss") or 0.0)
            self._remember(
                int(record["step"]), loss, None if grad_norm is None else float(grad_norm),
                str(record.get("skipped", "")),
            )  # fmt: skip
        self.num_skipped = num_skipped

    def judge(self, *, step: int, loss: float, grad_norm: float | None, is_skipped: bool, scaled: bool) -> StepVerdict:
        """Return the verdict on a step.

        Args:
            step: Counted from 1.
            loss: The training loss: mean over the batch, in nats per token, with the extra losses.
            grad_norm: Global gradient norm before clipping, or None if not computed.
            is_skipped: Whether the device skipped the update because of non-finite gradients or the loss.
            scaled: Whether the loss scale is dynamic, so that gradients overflow occasionally.
        """
        finite_norm = grad_norm is None or math.isfinite(grad_norm)
        if is_skipped:
            skipped = LOSS_SPIKE if math.isfinite(loss) and finite_norm and loss > self.loss_limit else OVERFLOW
        else:
            above = grad_norm is not None and self._grad_norm is not None and not grad_norm <= self.grad_norm_limit
            skipped = GRAD_NORM_SPIKE if above else ""
        self._remember(step, loss, grad_norm, skipped)
        return StepVerdict(skipped=skipped, stop=self._find_stop(loss, grad_norm, skipped, scaled))

    def _find_stop(self, loss: float, grad_norm: float | None, skipped: str, scaled: bool) -> str:
        if self._config.stop_on_non_finite:
            if not math.isfinite(loss):
                return f"the loss is {loss}"
            if grad_norm is not None and not math.isfinite(grad_norm) and not scaled:
                return f"the gradient norm is {grad_norm}"
            if skipped == OVERFLOW and not scaled:
                return "a gradient is not finite"
        if self._num_in_a_row >= self._config.max_skips_in_a_row:
            return f"{self._num_in_a_row} consecutive steps were skipped; the last reason: {skipped}"
        return ""

    def _remember(self, step: int, loss: float, grad_norm: float | None, skipped: str) -> None:
        if self._loss:
            self._loss.add(loss)
        if self._grad_norm and grad_norm is not None:
            self._grad_norm.add(grad_norm)
        self._num_in_a_row = self._num_in_a_row + 1 if skipped else 0
        self.num_skipped += bool(skipped)
        # The next step (`step` counted from 0) begins a new phase.
        if step in self._first_steps:
            for window in (self._loss, self._grad_norm):
                if window:
                    window.clear()
