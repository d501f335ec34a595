"""Spike guards in the training step, which skip the update on the device before the optimizer runs.

MindFormers' two wrappers skip the update in `construct`: `if not overflow` and, with `use_skip_data_by_global_norm`,
`if global_norm < threshold`. The subclasses here replace them in MindFormers' registry, make the threshold a parameter
and add the loss to the first condition. The host sets these parameters between steps, so the graph is compiled only
once. This works in graph and PyNative mode, with and without data sink.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindformers.wrapper.wrapper import MFPipelineWithLossScaleCell, MFTrainOneStepCell
from mindspore import Parameter, Tensor, ops
from mindspore.communication import get_group_size

from ascend_cpt.config.monitoring_schema import GuardConfig
from ascend_cpt.errors import RunStopped
from ascend_cpt.files import write_text
from ascend_cpt.monitor.guard import StepJudge, StepVerdict
from ascend_cpt.monitor.record import to_json_number


class _Guarded:
    """Additions to both wrappers. The guarded loss is the mean over micro batches and ranks."""

    guards_loss = False  # set per process by `install_guards`; a constant in the graph
    is_distributed: bool
    use_clip_grad: bool
    allreduce: Any
    upstream_grads: Any
    upstream_process: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guarded_loss = Parameter(Tensor(0.0, ms.float32), name="guarded_loss", requires_grad=False)
        self.loss_limit = Parameter(Tensor(math.inf, ms.float32), name="loss_limit", requires_grad=False)
        self.grad_norm_limit = Parameter(Tensor(math.inf, ms.float32), name="grad_norm_limit", requires_grad=False)
        self.num_losses = getattr(self, "micro_size", 1) * (get_group_size() if self.is_distributed else 1)
        # MindFormers' condition, with a parameter instead of a constant. Without clipping, there is no norm.
        self.use_skip_data_by_global_norm = self.use_clip_grad
        self.global_norm_spike_threshold = Parameter(
            Tensor(math.inf, ms.float32), name="grad_norm_threshold", requires_grad=False
        )

    def grads_for_mcore(self, scaling_sens: Tensor, *inputs: Tensor) -> tuple[Any, ...]:
        """Return the loss, gradients and scale as upstream does. Store the loss and copy the norm limit."""
        loss, grads, grad_scale_factor = self.upstream_grads(scaling_sens, *inputs)
        if self.guards_loss:
            ops.assign(self.guarded_loss, ops.cast(loss, ms.float32).reshape(()))
        # Copied because a parameter read only inside the branch keeps its initial value there (CPU, graph mode).
        ops.assign(self.global_norm_spike_threshold, self.grad_norm_limit + 0.0)
        return loss, grads, grad_scale_factor

    def process_loss_scale(self, overflow: Tensor) -> Tensor:
        """Return whether to skip the update. The loss scale changes only on real overflows."""
        is_skipped = self.upstream_process(overflow)
        if self.guards_loss:
            loss = self.guarded_loss + 0.0
            if self.is_distributed:
                loss = self.allreduce(loss)
            is_skipped = ops.logical_or(is_skipped, loss / self.num_losses > self.loss_limit)
        return is_skipped


class GuardedTrainOneStepCell(_Guarded, MFTrainOneStepCell):
    """MFTrainOneStepCell with spike guards."""

    upstream_grads = MFTrainOneStepCell.grads_for_mcore
    upstream_process = MFTrainOneStepCell.process_loss_scale


class GuardedPipelineCell(_Guarded, MFPipelineWithLossScaleCell):
    """MFPipelineWithLossScaleCell, which accumulates gradients and runs pipeline stages, with spike guards."""

    upstream_grads = MFPipelineWithLossScaleCell.grads_for_mcore
    upstream_process = MFPipelineWithLossScaleCell.process_loss_scale


def install_guards(config: GuardConfig) -> None:
    """Register the guarded wrappers if spikes are to be skipped. Call this before the network is built."""
    if config.loss_spike is None and config.grad_norm_spike is None:
        return
    _Guarded.guards_loss = config.loss_spike is not None
    for upstream, guarded in (
        (MFTrainOneStepCell, GuardedTrainOneStepCell),
        (MFPipelineWithLossScaleCell, GuardedPipelineCell),
    ):
        MindFormerRegister.register_cls(guarded, MindFormerModuleType.WRAPPER, alias=upstream.__name__)


class StepGuard:
    """Sets the judge's limits on the device and applies its verdicts to the run.

    Args:
        judge: Computes limits and verdicts, which are the same on every rank.
        run_dir: Folder in which to write the rows of the step that stopped the run.
        list_rows: Step (from 0) → (source, row) of every row of its global batch.
        reports: Whether this rank writes.
    """

    def __init__(
        self,
        judge: StepJudge,
        *,
        run_dir: Path,
        list_rows: Callable[[int], Sequence[tuple[str, int]]],
        reports: bool,
    ) -> None:
        self._judge, self._run_dir, self._list_rows, self._reports = judge, run_dir, list_rows, reports
        self._limits = (math.inf, math.inf)

    @property
    def num_skipped(self) -> int:
        """The number of steps skipped in the run so far."""
        return self._judge.num_skipped

    def set_limits(self, wrapper: Any) -> None:
        """Set the limits of the next step on the device."""
        limits = (self._judge.loss_limit, self._judge.grad_norm_limit)
        if limits != self._limits:
            wrapper.loss_limit.set_data(Tensor(limits[0], ms.float32))
            # MindFormers requires norm < threshold, so use the next float32 above the largest non-spike norm.
            threshold = np.nextafter(np.float32(limits[1]), np.float32(np.inf))
            wrapper.grad_norm_limit.set_data(Tensor(threshold, ms.float32))
            self._limits = limits

    def judge(self, wrapper: Any, *, step: int, loss: float, grad_norm: float | None, is_skipped: bool) -> StepVerdict:
        """Return the verdict on a finished step and set the limits of the next one."""
        verdict = self._judge.judge(
            step=step,
            loss=loss,
            grad_norm=grad_norm,
            is_skipped=is_skipped,
            scaled=getattr(wrapper, "loss_scaling_manager", None) is not None,
        )
        if verdict.skipped:
            # The optimizer did not count this step. The learning rate follows the step, not the number of updates, so
            # a skipped step does not shift the schedule.
            counter = wrapper.optimizer.global_step
            counter.set_data(Tensor(np.full(counter.shape, step), counter.dtype))
        self.set_limits(wrapper)
        return verdict

    def stop(self, reason: str, *, step: int, loss: float, grad_norm: float | None) -> RunStopped:
        """Write the rows of the step to a file and return the error to raise."""
        path = self._run_dir / f"stopped_at_step_{step}.json"
        if self._reports:
            content = {
                "step": step,
                "reason": reason,
                "loss": to_json_number(loss),
                "grad_norm": to_json_number(grad_norm),
                "rows": [{"source": source, "row": row} for source, row in self._list_rows(step - 1)],
            }
            write_text(path, json.dumps(content, indent=1) + "\n")
        return RunStopped(
            f"stopped at step {step}: {reason}; the rows of its batch are in {path}, and the newest checkpoint is from "
            "an earlier step; check the data, lower the learning rate, or adjust cpt.guards"
        )
