"""What happens around a training step: records, validation, checkpoints, an asked-for stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from mindspore import RunContext, nn
from mindspore.train import Callback

from ascend_cpt.backend.collective import is_pure_data_parallel, sum_over_ranks
from ascend_cpt.backend.evaluate import Evaluator
from ascend_cpt.backend.save import CheckpointWriter
from ascend_cpt.monitor.record import StepRecord
from ascend_cpt.monitor.sinks import ConsoleSink, JsonlSink
from ascend_cpt.recipe.budget import Budget


class StepMonitor(Callback):
    """Turns MindFormers' outputs of a step into a record and hands it to the sinks (rank 0 has some)."""

    def __init__(
        self, *, budget: Budget, initial_step: int, num_ranks: int, sinks: Sequence[ConsoleSink | JsonlSink]
    ) -> None:
        super().__init__()
        self._budget, self._initial_step, self._num_ranks = budget, initial_step, num_ranks
        self._sinks = sinks
        self._last_end_s: float | None = None
        self._recent_s: list[float] = []

    def on_train_begin(self, run_context: RunContext) -> None:
        """Start the clock."""
        self._last_end_s = time.perf_counter()

    def on_train_step_begin(self, run_context: RunContext) -> None:
        """Start the clock again after a pause for validation or saving, which is no part of a step."""
        if self._last_end_s is None:
            self._last_end_s = time.perf_counter()

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Write the record of the step."""
        cb_params = run_context.original_args()
        loss, overflow, _, learning_rate, grad_norm = cb_params.net_outputs[:5]
        # MindFormers adds up the losses of the micro batches.
        loss_value = self._average(float(np.mean(loss.asnumpy())) / self._budget.num_accumulation_steps)
        assert self._last_end_s is not None
        step_time_s = time.perf_counter() - self._last_end_s
        step = self._initial_step + cb_params.cur_step_num
        # The first step compiles the graph: its time says nothing about the rate.
        self._recent_s = (
            [step_time_s]
            if len(self._recent_s) == 1 and step_time_s < self._recent_s[0] / 4
            else ([*self._recent_s, step_time_s][-20:])
        )
        typical_s = float(np.mean(self._recent_s))
        record = StepRecord(
            step=step,
            total_steps=self._budget.total_steps,
            loss=loss_value,
            learning_rate=float(np.mean(learning_rate.asnumpy())),
            grad_norm=None if grad_norm is None else float(np.mean(grad_norm.asnumpy())),
            tokens=step * self._budget.tokens_per_step,
            step_time_s=typical_s,
            tokens_per_s=self._budget.tokens_per_step / typical_s,
            overflow=bool(np.any(overflow.asnumpy())),
        )
        for sink in self._sinks:
            sink.write(record)
        self._last_end_s = time.perf_counter()

    def pause(self) -> None:
        """Keep what happens until the next step begins out of that step's time."""
        self._last_end_s = None

    def _average(self, loss: float) -> float:
        """Return the mean over the ranks where each has a loss of its own."""
        if not is_pure_data_parallel() or self._num_ranks == 1:
            return loss
        return float(sum_over_ranks(np.array([loss]), self._num_ranks)[0] / self._num_ranks)


class RunKeeper(Callback):
    """Validates, saves and stops at the steps where that is due."""

    def __init__(
        self,
        *,
        total_steps: int,
        initial_step: int,
        writer: CheckpointWriter,
        save_every_steps: int | None,
        build_evaluator: Callable[[nn.Cell], Evaluator] | None,
        validate_every_steps: int | None,
        stop_at_step: int | None,
        sinks: Sequence[ConsoleSink | JsonlSink],
        monitor: StepMonitor,
    ) -> None:
        super().__init__()
        self._total_steps, self._initial_step = total_steps, initial_step
        self._writer, self._save_every = writer, save_every_steps
        self._build_evaluator, self._validate_every = build_evaluator, validate_every_steps
        self._evaluator: Evaluator | None = None
        self._stop_at_step = stop_at_step
        self._sinks, self._monitor = sinks, monitor

    def on_train_begin(self, run_context: RunContext) -> None:
        """Validate the weights that the run starts with."""
        if self._build_evaluator is None:
            return
        self._evaluator = self._build_evaluator(run_context.original_args().network)
        if self._initial_step == 0:
            self._validate(0)

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Do what is due after this step."""
        cb_params = run_context.original_args()
        step = self._initial_step + cb_params.cur_step_num
        last = step == self._total_steps or step == self._stop_at_step
        if last or _is_due(step, self._validate_every):
            self._validate(step)
        if last or _is_due(step, self._save_every):
            self._writer.save(step, cb_params)
            self._monitor.pause()
        if last:
            run_context.request_stop()

    def _validate(self, step: int) -> None:
        if self._evaluator is None:
            return
        for record in self._evaluator.evaluate(step):
            for sink in self._sinks:
                sink.write(record)
        self._monitor.pause()


def _is_due(step: int, every_steps: int | None) -> bool:
    return every_steps is not None and step % every_steps == 0
