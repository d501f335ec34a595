"""Validates, saves and stops the run at the configured steps."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspore import RunContext, nn
from mindspore.train import Callback

from ascend_cpt.backend.checkpointing.initial_values import InitialValues
from ascend_cpt.backend.checkpointing.writer import CheckpointWriter
from ascend_cpt.backend.training.ranks.rank_exchange import RankExchange
from ascend_cpt.backend.training.step_monitor import StepMonitor
from ascend_cpt.backend.training.stop_signals import StoppedBySignal, reinstall_handlers
from ascend_cpt.backend.training.validation import Evaluator
from ascend_cpt.cluster.job.launcher_files import report_activity, report_step, reporting_activity
from ascend_cpt.errors import CptError, RunStopped
from ascend_cpt.monitor.forgetting import AlarmVerdict, ForgettingAlarm, describe_stop
from ascend_cpt.monitor.goodput.slow_ranks import NewSlowRanks, SlowRankDetector
from ascend_cpt.monitor.goodput.timeline import NO_TIMELINE, Timeline
from ascend_cpt.monitor.sinks import SinkGroup
from ascend_cpt.run.evaluation.watching import take_stop_request


class RunController(Callback):
    """Validates, saves and stops at the configured steps. This must be the last callback."""

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
        exchange: RankExchange,
        slow_ranks: SlowRankDetector,
        reports_to_launcher: bool,
        alarm: ForgettingAlarm,
        recorded_validations: Sequence[Mapping[str, Any]],
        sinks: SinkGroup,
        monitor: StepMonitor,
        stop_file: Path | None = None,
        saves: bool = True,
        timeline: Timeline = NO_TIMELINE,
        restart_steps: Collection[int] = (),
    ) -> None:
        super().__init__()
        self._restart_steps, self._initial_values = restart_steps, InitialValues()
        self._total_steps, self._initial_step = total_steps, initial_step
        self._writer, self._save_every, self._saves = writer, save_every_steps, saves
        self._build_evaluator, self._validate_every = build_evaluator, validate_every_steps
        self._evaluator: Evaluator | None = None
        self._timeline = timeline
        self._stop_at_step = stop_at_step
        self._exchange, self._slow_ranks, self._new_slow_ranks = exchange, slow_ranks, NewSlowRanks()
        self._reports_to_launcher = reports_to_launcher
        self._alarm, self._recorded_validations = alarm, recorded_validations
        self._sinks, self._monitor = sinks, monitor
        self._ending: CptError | None = None
        self._is_prepared = False
        self._stop_file, self._removes_requests = stop_file, bool(sinks)

    def restore_alarm(self) -> None:
        """Restore a resumed run's recorded validations. Called once, before training.

        `on_train_begin` is too late: the training loop checks for a requested stop only after a step.

        Raises:
            RunStopped: when the last recorded validation still exceeds its limit.
        """
        if self._build_evaluator is None:
            return
        stopping = [verdict for verdict in self._alarm.restore(self._recorded_validations) if verdict.stop]
        if stopping:
            self._sinks.close()
            raise _make_alarm_error(stopping, "")

    def raise_ending(self) -> None:
        """After training, raise the error that ended the run. It is the same on every rank.

        Raises:
            RunStopped: when a guard or a validation set's alarm ended the run.
            StoppedBySignal: when a signal ended the run, after saving.
        """
        ending = self._monitor.ending or self._ending
        if ending is not None:
            raise ending

    def on_train_begin(self, run_context: RunContext) -> None:
        """Validate the weights that the run starts with."""
        if self._stop_file is not None and self._removes_requests:
            self._stop_file.unlink(missing_ok=True)  # from an earlier launch
        if self._build_evaluator is not None:
            self._evaluator = self._build_evaluator(run_context.original_args().network)
            if self._initial_step == 0:
                self._validate(0)
        self._monitor.mark_step_over()

    def on_train_step_begin(self, run_context: RunContext) -> None:
        """Reinstall the signal handlers, because starting a data pipeline replaces the Ctrl-C handler.

        With `cpt.restart_phases`, also set weights and optimizer to their initial values where a phase begins.
        """
        reinstall_handlers()
        if self._restart_steps:
            args = run_context.original_args()
            step = self._initial_step + args.cur_step_num - 1
            if step in self._restart_steps:
                self._initial_values.restore()
            elif step == 0:
                self._initial_values.keep(args.train_network)

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Validate, save or stop if due after this step.

        A stop is requested rather than raised, because in sink mode an error raised in a callback leaves the
        data-queue threads blocked. `raise_ending` raises the error after training.
        """
        if self._monitor.ending is not None:  # the weights must not be validated or saved
            return
        cb_params = run_context.original_args()
        step = self._initial_step + cb_params.cur_step_num
        self._prepare_saving(cb_params.network)
        if self._exchange.is_due(step) and self._writer.advance():
            self._timeline.end("saving")
        if self._reports_to_launcher:
            report_step(step)
        last = step == self._total_steps or step == self._stop_at_step
        request, stopped_by_evaluation = (None, False) if last else self._find_request(step)
        stopping: list[AlarmVerdict] = []
        if last or _is_due(step, self._validate_every):
            stopping = self._validate(step)
        ends = bool(last or stopping or request or stopped_by_evaluation)
        if ends or _is_due(step, self._save_every):
            saved = "nothing saved (cpt.checkpoint.save is False)"
            if self._saves:
                with reporting_activity("saving", is_reporting=self._reports_to_launcher):
                    saved = f"saved in {self._writer.save(step, cb_params, wait=ends)}"
                self._timeline.end("saving")
            if stopping:
                self._ending = _make_alarm_error(stopping, f"; {saved}")
            elif stopped_by_evaluation:
                self._ending = self._take_stop_request(saved)
            elif request:
                self._ending = StoppedBySignal(
                    f"stopped by {request.name} after step {step} of {self._total_steps}; {saved}; run the "
                    "same command to resume",
                    request,
                )
        if last or self._ending:
            if self._reports_to_launcher:
                report_activity("ending the run")
            run_context.request_stop()
        self._monitor.mark_step_over()

    def _prepare_saving(self, network: nn.Cell) -> None:
        """Reserve memory for background saves after the first step. Earlier, parameters may not be sharded yet."""
        if self._saves and not self._is_prepared:
            self._writer.prepare(network)
        self._is_prepared = True

    def finish_saving(self) -> None:
        """Complete a background save that was not finished when a guard stopped the run."""
        self._writer.finish()

    def on_train_end(self, run_context: RunContext) -> None:
        """Close the sinks."""
        self._sinks.close()

    def _find_request(self, step: int) -> tuple[signal.Signals | None, bool]:
        """If the ranks exchange after this step, return the signal and stop request received by any rank."""
        if not self._exchange.is_due(step):
            return None, False
        step_s, data_wait_s = self._monitor.take_times()
        is_requested = self._stop_file is not None and self._stop_file.is_file()
        found = self._exchange.exchange(step, is_stop_requested=is_requested, step_s=step_s, data_wait_s=data_wait_s)
        if self._sinks and (record := self._slow_ranks.add(step, found.times, self._exchange.node_names)):
            self._sinks.write(record)
            for warning in self._new_slow_ranks.describe(record):
                self._sinks.warn(f"step {step}: {warning}")
        return found.signal, found.is_stop_requested

    def _take_stop_request(self, saved: str) -> RunStopped:
        """If tools/evaluate.py requested a stop, remove the request and return the corresponding error."""
        message = "an alarm of tools/evaluate.py"
        if self._stop_file is not None:
            message = take_stop_request(self._stop_file.parent) or message
        if self._removes_requests and self._stop_file is not None:
            self._stop_file.unlink(missing_ok=True)
        return RunStopped(f"{message}; {saved}")

    def _validate(self, step: int) -> list[AlarmVerdict]:
        """Write the losses of all sets. Return the verdicts that stop the run, which are the same on all ranks."""
        if self._evaluator is None:
            return []
        with reporting_activity("validating", is_reporting=self._reports_to_launcher):
            verdicts = [self._alarm.judge(record) for record in self._evaluator.evaluate(step)]
        self._timeline.end("validation")
        for verdict in verdicts:
            self._sinks.write(verdict.record)
            if verdict.message and not verdict.stop and self._sinks:
                self._sinks.warn(verdict.message)
        return [verdict for verdict in verdicts if verdict.stop]


def _make_alarm_error(verdicts: Sequence[AlarmVerdict], saved: str) -> RunStopped:
    return RunStopped(describe_stop(verdicts, saved))


def _is_due(step: int, every_steps: int | None) -> bool:
    return every_steps is not None and step % every_steps == 0
