"""The outputs of a step are copied from the device once, before all callbacks."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindformers.core.callback.callback import MFLossMonitor
from mindformers.trainer.base_trainer import BaseTrainer
from mindspore import Tensor

from ascend_cpt.backend.training.step_monitor import HostOutputs, run_first
from tests.integration.backend.test_callbacks import OUTPUTS, make_context


def test_outputs_are_copied_to_the_host_before_the_first_callback() -> None:
    class Device(Tensor):
        num_reads = 0

        def asnumpy(self) -> Any:
            Device.num_reads += 1
            return super().asnumpy()

    monitor, outputs = MFLossMonitor(learning_rate=1e-3), HostOutputs()
    run_first(HostOutputs)
    assert BaseTrainer.sort_callbacks([monitor, outputs]) == [outputs, monitor]
    context = make_context(2)
    before = tuple(Device(output) for output in OUTPUTS)
    context.original_args().net_outputs = before
    outputs.on_train_step_end(context)
    assert Device.num_reads == len(OUTPUTS)
    copied = context.original_args().net_outputs
    for source, copy in zip(OUTPUTS, copied, strict=True):
        assert type(copy) is Tensor and copy.dtype == source.dtype and copy.shape == source.shape
        assert np.array_equal(copy.asnumpy(), source.asnumpy())
    assert Device.num_reads == len(OUTPUTS)
