"""What the callbacks take from MindSpore's callback parameters, in the forms that only a cluster would show."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from ascend_cpt.backend.callbacks import StepMonitor
from ascend_cpt.backend.save import CheckpointWriter
from ascend_cpt.monitor.record import StepRecord, ValidationRecord
from ascend_cpt.recipe.budget import Budget
from ascend_cpt.resume.locate import check_checkpoint
from ascend_cpt.resume.state import RunState

OUTPUTS = (Tensor(8.0), Tensor(False), Tensor(1.0), Tensor(1e-3), Tensor(0.5))


class Collected:
    def __init__(self) -> None:
        self.records: list[Any] = []

    def write(self, record: StepRecord | ValidationRecord) -> None:
        self.records.append(record)


class TrainOneStep(nn.Cell):
    """Stands for MindFormers' wrapper: a network and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Dense(2, 2)
        self.optimizer = nn.Momentum(self.network.trainable_params(), 0.1, 0.9)
        self.optimizer.global_step = Parameter(Tensor([3], ms.int32), name="global_step")


@pytest.mark.parametrize(("num_accumulation_steps", "loss"), [(1, 8.0), (4, 2.0)])
def test_loss_is_the_mean_over_micro_batches(num_accumulation_steps: int, loss: float) -> None:
    budget = Budget(
        seq_length=4,
        global_batch_size=num_accumulation_steps,
        micro_batch_size=1,
        num_accumulation_steps=num_accumulation_steps,
        total_steps=10,
    )
    sink = Collected()
    monitor = StepMonitor(budget=budget, initial_step=5, num_ranks=1, sinks=[sink])  # type: ignore[list-item]
    context = SimpleNamespace(original_args=lambda: SimpleNamespace(net_outputs=OUTPUTS, cur_step_num=2))
    monitor.on_train_begin(context)
    monitor.on_train_step_begin(context)
    monitor.on_train_step_end(context)
    record = sink.records[0]
    assert (record.step, record.loss, record.tokens) == (7, loss, 7 * 4 * num_accumulation_steps)
    assert record.learning_rate == pytest.approx(1e-3) and record.grad_norm == 0.5


def test_checkpoint_is_saved_from_the_network_behind_a_data_sink(tmp_path: Path) -> None:
    wrapper = TrainOneStep()
    # In sink mode MindSpore puts a cell that fetches the data in the place of the training network.
    parameters = SimpleNamespace(
        network=wrapper, train_network=SimpleNamespace(network=wrapper), cur_epoch_num=1, net_outputs=OUTPUTS
    )
    state = RunState(step=0, total_steps=10, tokens=0, position=0, fingerprint={"seq_length": 4})
    writer = CheckpointWriter(tmp_path, initial_state=state, global_batch_size=2, keep_last=1, rank=0, num_ranks=1)
    folder = writer.save(3, parameters)
    checkpoint = check_checkpoint(folder)
    assert (checkpoint.state.step, checkpoint.state.position, checkpoint.state.tokens) == (3, 6, 24)
    assert json.loads((folder / "common.json").read_text())["global_step"] == 3
    saved = ms.load_checkpoint(str(folder / "cpt-model-0000000-0000001.safetensors"), format="safetensors")
    assert set(saved) == set(wrapper.network.parameters_dict())
    weight = wrapper.network.weight
    assert np.array_equal(saved[weight.name].asnumpy(), weight.asnumpy())
