"""What happens around a training step: records, guards, validation, checkpoints, an asked-for stop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import RunContext, nn
from mindspore.train import Callback

from ascend_cpt.backend.collective import is_pure_data_parallel, sum_over_ranks
from ascend_cpt.backend.evaluate import Evaluator
from ascend_cpt.backend.guards import StepGuard
from ascend_cpt.backend.save import CheckpointWriter
from ascend_cpt.backend.stop_signal import StoppedBySignal, find_request, keep_listening
from ascend_cpt.cluster.progress import report_step
from ascend_cpt.errors import RunStopped
from ascend_cpt.monitor.accounting import DataAccount, PhaseSpan, is_tally_due
from ascend_cpt.monitor.forgetting import ForgettingAlarm, Verdict
from ascend_cpt.monitor.record import StepRecord
from ascend_cpt.monitor.sinks import SinkGroup
from ascend_cpt.recipe.budget import Budget

RATE_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What turns a rate into tokens per device and MFU; `peak_flops` of one device is None where it is not known."""

    num_devices: int
    flops_per_token: float
    peak_flops: float | None

    def compute_mfu(self, tokens_per_s: float) -> float | None:
        """Return the model FLOPs utilization at a rate of the whole cluster."""
        if self.peak_flops is None:
            return None
        return tokens_per_s * self.flops_per_token / (self.num_devices * self.peak_flops)


class StepMonitor(Callback):
    """Turns MindFormers' outputs of a step into a record, has it judged and hands it to the sinks."""

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
    ) -> None:
        super().__init__()
        self._budget, self._initial_step, self._speed = budget, initial_step, speed
        self._phases, self._guard, self._account, self._sinks = phases, guard, account, sinks
        self._last_end_s = self._begin_s = 0.0
        self._recent_s: deque[float] = deque(maxlen=RATE_STEPS)
        self._num_steps = 0

    def on_train_begin(self, run_context: RunContext) -> None:
        """Start the clock."""
        self._guard.set_limits(run_context.original_args().network)
        self.mark_step_over()

    def on_train_step_begin(self, run_context: RunContext) -> None:
        """Note that the batch is there."""
        self._begin_s = time.perf_counter()

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Write the record of the step.

        Raises:
            RunStopped: when a guard ends the run.
        """
        cb_params = run_context.original_args()
        loss, left_out, _, learning_rate, grad_norm = cb_params.net_outputs[:5]
        # MindFormers adds up the losses of the micro batches.
        loss_value = self._average(float(np.mean(loss.asnumpy())) / self._budget.num_accumulation_steps)
        norm_value = None if grad_norm is None else float(np.mean(grad_norm.asnumpy()))
        end_s = time.perf_counter()  # the device has finished: its loss is here
        step = self._initial_step + cb_params.cur_step_num
        verdict = self._guard.judge(
            cb_params.network,
            step=step,
            loss=loss_value,
            grad_norm=norm_value,
            left_out=bool(np.any(left_out.asnumpy())),
        )
        rate = self._measure_rate(end_s - self._last_end_s)
        in_sink = bool(getattr(cb_params, "dataset_sink_mode", False))
        record = StepRecord(
            step=step,
            total_steps=self._budget.total_steps,
            loss=loss_value,
            learning_rate=float(np.mean(learning_rate.asnumpy())),
            grad_norm=norm_value,
            tokens=step * self._budget.tokens_per_step,
            step_time_s=end_s - self._last_end_s,
            tokens_per_s=rate,
            tokens_per_s_per_device=rate / self._speed.num_devices,
            mfu=self._speed.compute_mfu(rate),
            data_wait_s=None if in_sink else self._begin_s - self._last_end_s,
            compute_s=None if in_sink else end_s - self._begin_s,
            phase=self._name_phase(step),
            skipped=verdict.skipped,
            num_skipped=self._guard.num_skipped,
        )
        self._sinks.write(record)
        if self._account is not None and (verdict.stop or is_tally_due(step, record.total_steps, self._phases)):
            self._sinks.write(self._account.tally(step))
        if verdict.stop:
            self._sinks.close()
            raise self._guard.stop(verdict.stop, step=step, loss=loss_value, grad_norm=norm_value)

    def mark_step_over(self) -> None:
        """Start the clock of the next step, after the last callback: validation and saving do not count."""
        self._last_end_s = time.perf_counter()

    def _measure_rate(self, step_time_s: float) -> float:
        """Return tokens per second over the last steps, without the first one of a launch: it compiles."""
        self._num_steps += 1
        if self._num_steps == 1:
            return self._budget.tokens_per_step / step_time_s
        self._recent_s.append(step_time_s)
        return self._budget.tokens_per_step * len(self._recent_s) / sum(self._recent_s)

    def _name_phase(self, step: int) -> str:
        if len(self._phases) < 2:
            return ""
        return next((phase.name for phase in self._phases if phase.first_step < step <= phase.stop_step), "")

    def _average(self, loss: float) -> float:
        """Return the mean over the ranks where each has a loss of its own."""
        if not is_pure_data_parallel() or self._speed.num_devices == 1:
            return loss
        return float(sum_over_ranks(np.array([loss]), self._speed.num_devices)[0] / self._speed.num_devices)


class RunKeeper(Callback):
    """Validates, saves and stops at the steps where that is due. Must be the last callback."""

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
        num_ranks: int,
        tells_launcher: bool,
        alarm: ForgettingAlarm,
        recorded_validations: Sequence[Mapping[str, Any]],
        sinks: SinkGroup,
        monitor: StepMonitor,
    ) -> None:
        super().__init__()
        self._total_steps, self._initial_step = total_steps, initial_step
        self._writer, self._save_every = writer, save_every_steps
        self._build_evaluator, self._validate_every = build_evaluator, validate_every_steps
        self._evaluator: Evaluator | None = None
        self._stop_at_step = stop_at_step
        self._num_ranks, self._tells_launcher = num_ranks, tells_launcher
        self._alarm, self._recorded_validations = alarm, recorded_validations
        self._sinks, self._monitor = sinks, monitor

    def on_train_begin(self, run_context: RunContext) -> None:
        """Validate the weights that the run starts with, or take over the base that it started with.

        Raises:
            RunStopped: when the alarm that stopped the run is still up.
        """
        if self._build_evaluator is not None:
            self._evaluator = self._build_evaluator(run_context.original_args().network)
            restored = self._alarm.restore(self._recorded_validations)
            self._end_if_asked([verdict for verdict in restored if verdict.stop], "")
            if self._initial_step == 0:
                self._validate(0)
        self._monitor.mark_step_over()

    def on_train_step_begin(self, run_context: RunContext) -> None:
        """Hear Ctrl-C again, which a data pipeline that was started meanwhile has taken for itself."""
        keep_listening()

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Do what is due after this step.

        Raises:
            RunStopped: when a validation set's alarm ends the run.
            StoppedBySignal: when the run was asked to end, after saving.
        """
        cb_params = run_context.original_args()
        step = self._initial_step + cb_params.cur_step_num
        self._writer.advance()
        if self._tells_launcher:
            report_step(step)
        last = step == self._total_steps or step == self._stop_at_step
        request = None if last else find_request(self._num_ranks)
        stopping: list[Verdict] = []
        if last or _is_due(step, self._validate_every):
            stopping = self._validate(step)
        if last or stopping or request or _is_due(step, self._save_every):
            folder = self._writer.save(step, cb_params, wait=bool(last or stopping or request))
            self._end_if_asked(stopping, f"; saved in {folder}")
            if request:
                self._sinks.close()
                raise StoppedBySignal(
                    f"stopped by {request.name} after step {step} of {self._total_steps}; saved in {folder}; the same "
                    "command goes on",
                    request,
                )
        if last:
            run_context.request_stop()
        self._monitor.mark_step_over()

    def finish_saving(self) -> None:
        """Complete what is still saved in the background, before the run ends by another callback."""
        self._writer.finish()

    def on_train_end(self, run_context: RunContext) -> None:
        """Write out what the sinks hold back."""
        self._sinks.close()

    def _validate(self, step: int) -> list[Verdict]:
        """Write the losses of all sets and return the verdicts that end the run; all ranks come to the same ones."""
        if self._evaluator is None:
            return []
        verdicts = [self._alarm.judge(record) for record in self._evaluator.evaluate(step)]
        for verdict in verdicts:
            self._sinks.write(verdict.record)
            if verdict.message and not verdict.stop and self._sinks:
                self._sinks.warn(verdict.message)
        return [verdict for verdict in verdicts if verdict.stop]

    def _end_if_asked(self, verdicts: Sequence[Verdict], saved: str) -> None:
        if verdicts:
            self._sinks.close()
            told = "; ".join(verdict.message for verdict in verdicts)
            raise RunStopped(
                f"stopped by on_increase: {told}{saved}; to go on, raise its max_increase or set on_increase to warn"
            )


def _is_due(step: int, every_steps: int | None) -> bool:
    return every_steps is not None and step % every_steps == 0
