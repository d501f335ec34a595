"""Records each training step: loss, learning rate, gradient norm, throughput, guards."""

from __future__ import annotations

import importlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import RunContext, Tensor
from mindspore.train import Callback

from ascend_cpt.backend.collectives import is_on_cpu, is_pure_data_parallel, sum_over_ranks
from ascend_cpt.backend.models.experts.monitor import ExpertMonitor
from ascend_cpt.backend.training.spike_guards import StepGuard
from ascend_cpt.errors import RunStopped
from ascend_cpt.monitor.accounting import DataAccount, PhaseSpan, is_tally_due
from ascend_cpt.monitor.goodput.timeline import FIRST_STEP, NO_TIMELINE, STEPS, Timeline
from ascend_cpt.monitor.record import StepRecord
from ascend_cpt.monitor.sinks import SinkGroup
from ascend_cpt.recipe.budget import Budget
from ascend_cpt.run.launch.start_clock import StartClock

RATE_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Constants for tokens/s, TFLOPS per device and MFU. `peak_flops` is per device, or None if unknown."""

    num_devices: int
    flops_per_token: float
    peak_flops: float | None

    def compute_tflops_per_device(self, tokens_per_s: float) -> float:
        """Return the achieved TFLOPS per device when the whole cluster reaches `tokens_per_s`."""
        return tokens_per_s * self.flops_per_token / self.num_devices / 1e12

    def compute_mfu(self, tokens_per_s: float) -> float | None:
        """Return the model FLOPs utilization when the whole cluster reaches `tokens_per_s`."""
        if self.peak_flops is None:
            return None
        return tokens_per_s * self.flops_per_token / (self.num_devices * self.peak_flops)


def read_peak_memory() -> int | None:
    """Return this process's peak tensor memory on its device in bytes, or None on a CPU."""
    if is_on_cpu():
        return None
    return int(ms.runtime.max_memory_allocated())


class HostOutputs(Callback):
    """Copies the outputs of each step to the host once, for all callbacks.

    Every `asnumpy` of a tensor on the device is a copy for which the host waits. MindFormers' MFLossMonitor and our
    monitor read the same outputs, several of them more than once.
    """

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Replace the step's outputs by tensors on the host."""
        cb_params = run_context.original_args()
        cb_params.net_outputs = tuple(
            Tensor(output.asnumpy()) if isinstance(output, Tensor) else output for output in cb_params.net_outputs
        )


def run_first(callback_class: type[Callback]) -> None:
    """Make MindFormers run callbacks of this class before its own."""
    module: Any = importlib.import_module("mindformers.trainer.base_trainer")
    if callback_class not in module.CALLBACK_HAS_SORT:
        module.CALLBACK_HAS_SORT.insert(0, callback_class)


class StepMonitor(Callback):
    """Builds a record from MindFormers' step outputs, applies the guards and writes it to the sinks.

    Args:
        gives_loss: With pipeline stages, whether this rank has the run's loss, as only the last stage does. None
            without stages, where every rank has a loss.
        clock: The start clock, whose parts are recorded after the first step.
        timeline: The timeline in which every step is recorded.
        experts: The monitor of a mixture of experts.
    """

    def __init__(
        self,
        *,
        budget: Budget,
        initial_step: int,
        speed: Speed,
        phases: Sequence[PhaseSpan],
        guard: StepGuard,
        account: DataAccount | None,
        sinks: SinkGroup,
        gives_loss: bool | None = None,
        clock: StartClock | None = None,
        timeline: Timeline = NO_TIMELINE,
        experts: ExpertMonitor | None = None,
    ) -> None:
        super().__init__()
        self._budget, self._initial_step, self._speed, self._gives_loss = budget, initial_step, speed, gives_loss
        self._phases, self._guard, self._account, self._sinks = phases, guard, account, sinks
        self._last_end_s = self._begin_s = 0.0
        self._recent_s: deque[float] = deque(maxlen=RATE_STEPS)
        self._num_steps = 0
        self._since_taken: list[tuple[float, float]] = []
        self._clock, self._timeline, self._experts = clock, timeline, experts
        self.ending: RunStopped | None = None
        """Why a guard ended the run, to be raised after the training loop has released its data queue."""

    def on_train_begin(self, run_context: RunContext) -> None:
        """Set the limits of the first step and start the clock."""
        network = run_context.original_args().network
        self._guard.set_limits(network)
        if self._experts is not None:
            self._experts.begin(network, self._initial_step)
        if self._clock is not None:
            self._clock.end("weights")
        self._timeline.end("starting")
        self.mark_step_over()

    def on_train_step_begin(self, run_context: RunContext) -> None:
        """Note the time at which the batch is available."""
        if self._clock is not None and self._num_steps == 0:
            self._clock.end("validation")
        self._begin_s = time.perf_counter()

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Write the step's record. If a guard stops the run, set `ending` and request the stop."""
        cb_params = run_context.original_args()
        loss, is_skipped, _, learning_rate, grad_norm = cb_params.net_outputs[:5]
        loss_value, language_loss = self._agree_on_losses(float(np.mean(loss.asnumpy())))
        norm_value = None if grad_norm is None else float(np.mean(grad_norm.asnumpy()))
        end_s = time.perf_counter()  # the device has finished, because the loss has been read
        step = self._initial_step + cb_params.cur_step_num
        verdict = self._guard.judge(
            cb_params.network,
            step=step,
            loss=loss_value,
            grad_norm=norm_value,
            is_skipped=bool(np.any(is_skipped.asnumpy())),
        )
        if self._clock is not None and self._num_steps == 0:
            self._clock.end("compile")
            self._sinks.write(self._clock.make_record(step))
        part = STEPS if self._num_steps else FIRST_STEP
        self._timeline.end(part, step=step, data_s=max(0.0, self._begin_s - self._last_end_s))
        rate = self._measure_rate(end_s - self._last_end_s)
        in_sink = bool(getattr(cb_params, "dataset_sink_mode", False))
        self._since_taken.append((end_s - self._last_end_s, 0.0 if in_sink else self._begin_s - self._last_end_s))
        record = StepRecord(
            step=step,
            total_steps=self._budget.total_steps,
            loss=language_loss,
            extra_loss=None if self._experts is None else loss_value - language_loss,
            learning_rate=float(np.mean(learning_rate.asnumpy())),
            grad_norm=norm_value,
            tokens=self._budget.count_tokens(step),
            step_time_s=end_s - self._last_end_s,
            tokens_per_s=rate,
            tokens_per_s_per_device=rate / self._speed.num_devices,
            tflops_per_device=self._speed.compute_tflops_per_device(rate),
            mfu=self._speed.compute_mfu(rate),
            data_wait_s=None if in_sink else self._begin_s - self._last_end_s,
            compute_s=None if in_sink else end_s - self._begin_s,
            phase=self._name_phase(step),
            skipped=verdict.skipped,
            num_skipped=self._guard.num_skipped,
            peak_memory_bytes=read_peak_memory(),
        )
        self._sinks.write(record)
        if self._account is not None and (verdict.stop or is_tally_due(step, record.total_steps, self._phases)):
            self._sinks.write(self._account.tally(step))
        stop = self._observe_experts(step, verdict.stop)
        if stop:
            self.ending = self._guard.stop(stop, step=step, loss=loss_value, grad_norm=norm_value)
            run_context.request_stop()

    def take_times(self) -> tuple[float, float]:
        """Return the mean step time and the mean wait for data since the last call, in seconds."""
        step_s, data_wait_s = np.mean(self._since_taken, axis=0)
        self._since_taken.clear()
        return float(step_s), float(data_wait_s)

    def mark_step_over(self) -> None:
        """Start timing the next step. Called after the last callback, so validation and saving do not count."""
        self._last_end_s = time.perf_counter()

    def _measure_rate(self, step_time_s: float) -> float:
        """Return tokens per second over recent steps, without a launch's first step, which compiles."""
        self._num_steps += 1
        if self._num_steps == 1:
            return self._budget.tokens_per_step / step_time_s
        self._recent_s.append(step_time_s)
        return self._budget.tokens_per_step * len(self._recent_s) / sum(self._recent_s)

    def _name_phase(self, step: int) -> str:
        if len(self._phases) < 2:
            return ""
        return next((phase.name for phase in self._phases if phase.first_step < step <= phase.stop_step), "")

    def _observe_experts(self, step: int, stop: str) -> str:
        """Write the record of the experts if it is due. Return why the run stops, if it does not stop already."""
        if self._experts is None or stop:
            return stop
        record, overload = self._experts.observe(step)
        if record is not None:
            self._sinks.write(record)
        return overload

    def _agree_on_losses(self, total: float) -> tuple[float, float]:
        """Return the run's loss and its language model's part, which are the same on every rank.

        MindFormers sums the losses of the micro batches.
        """
        num_batches = self._budget.num_accumulation_steps
        loss = self._agree(total / num_batches)
        if self._experts is None:
            return loss, loss
        return loss, self._agree(self._experts.language_model_loss / num_batches)

    def _agree(self, loss: float) -> float:
        """Return a loss of the run, which is the same on every rank.

        It is the last stage's loss with pipeline stages, and the mean over ranks in pure data parallelism.
        """
        if self._gives_loss is not None:
            return float(sum_over_ranks(np.array([loss if self._gives_loss else 0.0]), self._speed.num_devices)[0])
        if not is_pure_data_parallel() or self._speed.num_devices == 1:
            return loss
        return float(sum_over_ranks(np.array([loss]), self._speed.num_devices)[0] / self._speed.num_devices)
