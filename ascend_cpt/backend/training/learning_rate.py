"""The learning rate in the network: a lookup in the table computed by `ascend_cpt.recipe.schedule`."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import Tensor, ops
from mindspore.nn.learning_rate_schedule import LearningRateSchedule

from ascend_cpt.recipe.schedule import Schedule, tabulate
from ascend_cpt.run.mindformers_yaml import SCHEDULE_NAME


@MindFormerRegister.register(MindFormerModuleType.LR)
class CptTableLR(LearningRateSchedule):
    """The learning rate by the optimizer's global step. Past the end of the table, it stays at the last value."""

    def __init__(self, kind: str, segments: list[dict[str, Any]], total_steps: int) -> None:
        super().__init__()
        schedule = Schedule.from_record(kind, segments)
        assert schedule.total_steps == int(total_steps), "MindFormers fills in total_steps where it is not given"
        table = tabulate(schedule)
        self.table = Tensor(table, ms.float32)
        self.last_step = Tensor(len(table) - 1, ms.int32)
        self.gather = ops.Gather()
        self.minimum = ops.Minimum()
        self.cast = ops.Cast()

    def construct(self, global_step: Tensor) -> Tensor:
        """Return the rate (float32 scalar) of `global_step` (int32, from 0)."""
        step = self.minimum(self.cast(global_step, ms.int32), self.last_step)
        return self.gather(self.table, step.reshape(()), 0)


assert CptTableLR.__name__ == SCHEDULE_NAME
